"""What every page must keep: it runs the application's one script and no other, by its hash."""

from __future__ import annotations

import base64
import hashlib
import re

POLICY = (
    "default-src 'none'; script-src '{}'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
)


def without_script(text: str) -> str:
    """Return a page without its script, after checking that it is the only one and that the policy names its hash."""
    scripts = re.findall(r"<script>(.*?)</script>", text, flags=re.S)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policies = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)
    assert policies == [POLICY.format(f"sha256-{digest}")]
    assert text.index("<meta http-equiv") < text.index("<style>") < text.index("<script>")
    assert not re.search(r"\b(?:eval|Function|innerHTML|fetch|XMLHttpRequest|import)\b", scripts[0])
    return text.replace(f"<script>{scripts[0]}</script>", "")
