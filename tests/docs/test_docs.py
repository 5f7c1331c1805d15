"""README and docs say what is so: their commands run, their links lead somewhere, their tables are current."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import os
import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest

from sim.cli import main
from sim.spec.scenario_file import load_scenario
from sim.studies.sweep import grid
from sim.traffic.adapters import SHAPES, parameters_per_rank

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LONG = bool(os.environ.get("LORAPLAN_DOCS_LONG"))

_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>file|long): (?P<text>.*?) -->\n)?```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_COMMAND_CELL = re.compile(r"`(--(?:set|over) [^`|]*)`")


@dataclass
class Command:
    """A command of a page, with the output and exit code shown below it."""

    line: int
    text: str
    long: bool
    output: list[str] = field(default_factory=list)
    code: int = 0


@dataclass
class File:
    """A file that a page tells the reader to write."""

    name: str
    text: str


def steps(page: Path) -> list[Command | File]:
    """Return what a reader of the page does, in order."""
    text = page.read_text(encoding="utf-8")
    found: list[Command | File] = []
    for block in _BLOCK.finditer(text):
        if block["mark"] == "file":
            found.append(File(block["text"], block["body"]))
        elif block["kind"] == "console":
            line = text.count("\n", 0, block.start("body")) + 1
            found += _commands(block["body"], line, block["mark"] == "long")
    return found


def _commands(body: str, first: int, long: bool) -> list[Command]:
    commands: list[Command] = []
    asked = False
    for line, text in enumerate(body.splitlines(), first):
        if text == "$ echo $?":
            asked = True
        elif text.startswith("$ "):
            commands.append(Command(line, text[2:], long))
        elif asked:
            commands[-1].code, asked = int(text), False
        else:
            commands[-1].output.append(text)
    return commands


def run(text: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """Run a command in this process; return its exit code, stdout and stderr."""
    words = shlex.split(text)
    assert words[0] == "loraplan", f"only loraplan is run here, not {text!r}"
    monkeypatch.setattr(sys, "argv", words)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stopped:
        main()
    code = stopped.value.code
    return (code if isinstance(code, int) else 0), out.getvalue(), err.getvalue()


def as_check(text: str) -> str:
    """Return the command that checks what a long one would simulate."""
    words = shlex.split(text)
    kept = ["loraplan", "check", words[2]]
    for option, value in itertools.pairwise(words):
        if option == "--set":
            kept += ["--set", value]
        if option == "--over":
            key, _, values = value.partition("=")
            kept += ["--set", f"sweep={{{key}: [{values}]}}"]
    return shlex.join(kept)


with_commands = [page for page in PAGES if any(isinstance(step, Command) for step in steps(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", with_commands, ids=lambda page: page.name)
def test_commands_do_what_the_page_shows(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")  # starting workers would cost more than these runs
    for step in steps(page):
        if isinstance(step, File):
            Path(step.name).parent.mkdir(parents=True, exist_ok=True)
            Path(step.name).write_text(step.text, encoding="utf-8")
            continue
        shortened = step.long and not LONG
        code, out, err = run(as_check(step.text) if shortened else step.text, monkeypatch)
        where = f"{page.name}:{step.line}: {step.text}\n{out[-1000:]}\n{err}"
        assert code == step.code, where
        if shortened:
            continue
        printed = (out + err).splitlines()
        for shown in step.output:
            if shown.startswith(("error: ", "note: ")):
                pattern = ".*".join(re.escape(part) for part in shown.split("…"))
                assert any(re.fullmatch(pattern, line) for line in printed), f"not printed: {shown}\n{where}"
        if step.output and step.code == 0 and not step.output[0].startswith(("note: ", "{", "…")):
            start = step.output[0].split("…")[0].split(":")[0].strip()
            assert any(line.startswith(start) for line in printed), f"nothing printed begins with {start!r}\n{where}"


def test_commands_of_the_reference_table_are_valid() -> None:
    cells = _COMMAND_CELL.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(cells) >= 5
    for cell in cells:
        words = shlex.split(cell)
        assert set(words[::2]) <= {"--set", "--over"}, cell
        pairs = list(zip(words[::2], words[1::2], strict=True))
        loaded = load_scenario("cache-thrash", [value for option, value in pairs if option == "--set"])
        over = dict(value.split("=", 1) for option, value in pairs if option == "--over")
        for values in grid(loaded, {key: text.split(",") for key, text in over.items()}):
            loaded.with_values({key: _number(value) for key, value in values.items()})


def _number(text: str) -> float | int | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(_without_code(page.read_text(encoding="utf-8"))):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        assert other.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in _anchors(other), f"{page.name}: {target}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    targets = {target.partition("#")[0] for target in _LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))}
    assert {page.relative_to(ROOT).as_posix() for page in PAGES if page.name != "README.md"} <= targets


def test_pages_name_no_machine() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for path in (f"{ROOT.parent}/", "/home/", "/tmp/", "/root/", "localhost"):
            assert path not in text, f"{page.name} names {path}"


def test_generated_tables_are_current() -> None:
    stale = [path.name for path, text in generator().pages().items() if path.read_text(encoding="utf-8") != text]
    assert not stale, f"run python docs/generate.py: {', '.join(stale)}"


def test_the_adapter_table_is_what_the_shapes_give() -> None:
    rows = re.findall(r"^\| ([a-z0-9.\-, ]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$",
                      (ROOT / "docs" / "model.md").read_text(encoding="utf-8"), re.MULTILINE)  # fmt: skip
    seen = set()
    for names, *numbers in rows:
        for name in names.split(", "):
            shape = SHAPES[name]
            counted = [parameters_per_rank(shape, t) for t in (("q", "v"), ("q", "k", "v", "o"), "all-linear")]
            assert [int(number.replace(",", "")) for number in numbers] == counted, name
            seen.add(name)
    assert seen == set(SHAPES)


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", _BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
