"""Build the documentation site into site/: run ``python tools/site.py``, or ``make docs``.

The pages are written for GitHub, so their links lead to files. For the site they are copied to build/pages, with the
pages of the repository's root next to those of docs/, links between the two folders are shortened, and files that a
reader writes get their names as titles. Zensical then builds them; a dead link or anchor is an error. Two things it
does not check are checked here: every page has its place in the navigation, and no built page fetches anything from
elsewhere. The reports of docs/ui.md are made by its own commands, which takes a minute and a half.
For agents the site has each page as Markdown too, and llms.txt, which lists them (llmstxt.org).
"""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIGURATION = ROOT / "mkdocs.yml"
STAGED = ROOT / "build" / "pages"
SITE = ROOT / "site"
ROOT_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "skills/loraplan/SKILL.md")
"""Pages outside docs/ that the site has too. The README is not: index.md is the home of the site."""
OTHERS = ("*.html", "pictures/*", "assets/*", "notebooks/*")
"""Files of docs/ that pages link to, show or run."""
SHIM = "https://unpkg.com/iframe-worker/shim"
OWN_SHIM = "assets/iframe-worker.js"
"""What lets search work in pages opened from a folder: Zensical fetches it, and docs/ has a copy."""

_LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
_CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"^<!-- file: (.*?) -->\n```(\w+)$", re.MULTILINE)
_REPORT = re.compile(r"^<!-- report: ([\w-]+) -->$", re.MULTILINE)
_NAVIGATION = re.compile(r"[\w-]+\.md")
_TAG = re.compile(r"<(?:script|img|iframe|link)\b[^>]*>")
_ELSEWHERE = re.compile(r"(?:src|href)=[\"']?(?:https?:)?//")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def main() -> int:
    """Build the site and return the exit code."""
    problems = [*navigation_problems()]
    if not problems:
        stage()
        problems = [*build_reports(STAGED / "reports")]
    if not problems:
        shutil.rmtree(SITE, ignore_errors=True)
        command = [
            sys.executable,
            "-m",
            "zensical",
            "build",
            "--strict",
            "--clean",
            "--config-file",
            str(CONFIGURATION),
        ]
        ended = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if ended.returncode:
            print(_COLOUR.sub("", ended.stdout).partition("Traceback")[0], file=sys.stderr)
            return 1
        for path in SITE.glob("*.html"):
            path.write_text(path.read_text(encoding="utf-8").replace(SHIM, OWN_SHIM), encoding="utf-8")
        for name in pages():
            shutil.copyfile(STAGED / name, SITE / name)
        (SITE / "llms.txt").write_text(llms_txt(), encoding="utf-8")
        problems = [*fetches()]
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(f"{(SITE / 'index.html').relative_to(ROOT)}: {len(pages())} pages")
    return 1 if problems else 0


def pages() -> dict[str, Path]:
    """Return the file of every page of the site, by its name there."""
    found = {path.name: path for path in sorted((ROOT / "docs").glob("*.md"))}
    return found | {Path(name).name.lower(): ROOT / name for name in ROOT_PAGES}


def navigation_problems() -> Iterator[str]:
    """Yield what is wrong with the navigation in mkdocs.yml."""
    lines = CONFIGURATION.read_text(encoding="utf-8").partition("\nnav:\n")[2].splitlines()
    named = [name for line in lines for name in _NAVIGATION.findall(line.partition("#")[0])]
    there = pages()
    for name in there:
        if name not in named:
            yield f"mkdocs.yml: {name} is not in nav; add it where a reader would look for it"
    for name in named:
        if name not in there:
            yield f"mkdocs.yml: nav names {name}, which does not exist"
    for name in sorted({name for name in named if named.count(name) > 1}):
        yield f"mkdocs.yml: nav names {name} more than once"


def llms_txt() -> str:
    """Return the list of pages for agents: as the navigation has them, each with its first sentence."""
    texts = {name: for_site(path.read_text(encoding="utf-8")) for name, path in pages().items()}
    summary = " ".join(texts["index.md"].split("\n\n")[1].split())
    lines = ["# loraplan", "", f"> {summary}", ""]
    for line in CONFIGURATION.read_text(encoding="utf-8").partition("\nnav:\n")[2].splitlines():
        depth, (title, _, name) = line.index("-"), line.strip("- ").partition(":")
        if name:
            lines.append(f"- [{title}]({name.strip()}): {_first_sentence(texts[name.strip()])}")
        elif depth == 2:
            lines += ["", f"## {title}", ""]
    return "\n".join(lines) + "\n"


def _first_sentence(text: str) -> str:
    """Return the first sentence of a page's first paragraph, without links."""
    paragraphs = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL).split("\n\n")[1:]
    first = next(part for part in paragraphs if part.strip()[:1] not in ("", "#", "|", "!", "<", "-"))
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(first.split()))
    return re.split(r"(?<=[.?])\s", plain)[0]


def stage() -> None:
    """Copy the pages, and what they show, to where the site is built from."""
    shutil.rmtree(STAGED, ignore_errors=True)
    STAGED.mkdir(parents=True)
    for name, path in pages().items():
        (STAGED / name).write_text(for_site(path.read_text(encoding="utf-8")), encoding="utf-8")
    for pattern in OTHERS:
        for path in (ROOT / "docs").glob(pattern):
            target = STAGED / path.relative_to(ROOT / "docs")
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)


def build_reports(folder: Path) -> Iterator[str]:
    """Run the commands of docs/ui.md and keep their reports; yield what went wrong."""
    sys.path.append(str(ROOT / "docs"))
    outputs = importlib.import_module("outputs")
    folder.mkdir()
    with tempfile.TemporaryDirectory() as work:
        for command, ended in outputs.replay(ROOT / "docs" / "ui.md", Path(work), long=True):
            if ended.code != command.code:
                yield "\n".join([f"ui.md:{command.line}: exits with {ended.code}: {command.text}", *ended.printed])
        for report in Path(work).glob("*/report.html"):
            shutil.copyfile(report, folder / f"{report.parent.name}.html")


def for_site(text: str) -> str:
    """Return a page with links as they are where all pages lie in one folder, with titles above files and links to
    reports."""
    parts = _CODE.split(text)
    moved = (part if at % 2 else _LINK.sub(lambda link: _moved(link[0]), part) for at, part in enumerate(parts))
    linked = _REPORT.sub(r"[Open the report](reports/\1.html)", "".join(moved))
    return _FILE.sub(r'```\2 title="\1"', linked)


def _moved(target: str) -> str:
    for name in ROOT_PAGES:
        for written in (f"../{name}", name):
            if target.partition("#")[0] == written:
                return target.replace(written, Path(name).name.lower(), 1)
    return target.removeprefix("docs/")


def fetches() -> Iterator[str]:
    """Yield what built pages would fetch from elsewhere."""
    for path in sorted(SITE.glob("*.html")):
        for tag in _TAG.findall(path.read_text(encoding="utf-8")):
            if _ELSEWHERE.search(tag):
                yield f"{path.name} fetches from elsewhere: {tag}"


if __name__ == "__main__":
    sys.exit(main())
