"""The notebook runs from top to bottom; IPython is no dependency, so its display classes are stood in for."""

from __future__ import annotations

import ast
import json
import re
import sys
from types import ModuleType
from typing import Any

import pytest
from scripts import ROOT

NOTEBOOK = ROOT / "docs" / "notebooks" / "first-hour.ipynb"


def cells(kind: str) -> list[str]:
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


@pytest.mark.slow
def test_every_cell_runs_and_shows_something(monkeypatch: pytest.MonkeyPatch) -> None:
    display: Any = ModuleType("IPython.display")
    display.HTML = str
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    named: dict[str, Any] = {}
    exec(compile(cells("code")[0], NOTEBOOK.name, "exec"), named)
    charts = []
    for text in cells("code")[1:]:
        *body, last = ast.parse(text).body
        assert isinstance(last, ast.Expr), text
        exec(compile(ast.Module(body, []), NOTEBOOK.name, "exec"), named)
        shown = eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), named)
        assert shown is not None, text
        charts += [shown] if isinstance(shown, str) else []
    assert len(charts) == 2
    assert all("&lt;path d=" in chart for chart in charts)
    assert named["points"].table("ttft_p99_s").loc[16, "ttft_p99_s"] > named["result"].value("ttft_p99_s")


def test_its_links_lead_somewhere_and_no_outputs_are_kept() -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", "".join(cells("markdown"))):
        assert (NOTEBOOK.parent / target).exists(), target
    assert '"outputs": []' in NOTEBOOK.read_text(encoding="utf-8")
    assert '"output_type"' not in NOTEBOOK.read_text(encoding="utf-8")
