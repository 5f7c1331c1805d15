"""Texts from strangers on the terminal: no escape sequence, and no line that looks like one of loraplan's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import CommandLine
from test_hostile_runs import SMALL

from calibrate.loads.synthetic_adapters import write_example_fleet
from sim.cells import one_line

EVIL = "\x1b[31mred\x1b]0;title\x07\x9b2J\u202e\rerror: forged\nerror: forged\x7f"


@pytest.fixture
def printed(loraplan: CommandLine, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Run a command in a folder with a scenario; return its exit code and all it printed."""
    (tmp_path / "s.yaml").write_text(SMALL)
    loraplan.headroom = True

    def run(*arguments: str) -> tuple[int, str]:
        ended = loraplan(*arguments)
        return ended.code, ended.out + ended.err

    return run


def harmless(text: str) -> bool:
    lines = text.split("\n")
    return all(map(str.isprintable, lines)) and not any(line.strip().startswith("error: forged") for line in lines)


def spoil(run: Path) -> None:
    """Put hostile text wherever a run directory has free text."""
    manifest = json.loads((run / "manifest.json").read_text())
    manifest.update(command=EVIL, code=EVIL, started_at=EVIL, description=EVIL)
    manifest["name"] += EVIL
    if manifest.get("profile"):
        manifest["profile"].update(description=EVIL, name=EVIL)
    (run / "manifest.json").write_text(json.dumps(manifest))
    for file in (run / "points").glob("*.json"):
        data = json.loads(file.read_text())
        point = data["point"]
        point["warnings"] = [f"look: {EVIL}"]
        point["events"] = [{"t_s": 1.0, "kind": EVIL, "text": EVIL}]
        for metric in point["metrics"].values():
            metric["note"] = EVIL
        for group in point.get("groups", ()):
            group["name"] = EVIL
        file.write_text(json.dumps(data))


RUN = ("run", "s.yaml", "--no-headroom", "--out", "out")
PLAN = ("plan", "s.yaml", "--minimize", "cache.gpu.slots=4..6", "--no-headroom", "--out", "out")
SWEEP = ("sweep", "s.yaml", "--over", "cache.gpu.slots=4,8", "--out", "out")


@pytest.mark.promise(
    "Whatever is printed on a terminal has control characters as escapes",
    "and line breaks of untrusted text too: it cannot look like a line of loraplan's own output.",
)
@pytest.mark.parametrize(
    ("made", "then"),
    [
        (RUN, RUN),
        (RUN, (*RUN, "--json")),
        (SWEEP, SWEEP),
        (PLAN, PLAN),
        (PLAN, (*PLAN, "--json")),
        (RUN, ("report", "out")),
        (RUN, ("compare", "out", "out", "--out", "c")),
        (RUN, ("compare", "out", "out", "--json")),
    ],
)
def test_a_strangers_run_prints_plain_text(
    printed: Callable[..., tuple[int, str]], tmp_path: Path, made: tuple[str, ...], then: tuple[str, ...]
) -> None:
    assert printed(*made)[0] == 0
    spoil(tmp_path / "out")
    code, text = printed(*then)
    assert code == 0, text
    assert harmless(text)
    if then in (RUN, SWEEP):
        assert r"note: look: \x1b[31mred\x1b]0;title\x07\x9b2J\u202e\rerror: forged\nerror: forged\x7f" in text


@pytest.mark.promise("Whatever is printed on a terminal has control characters as escapes")
@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize("command", ["adapters", "vet"])
def test_names_of_adapter_folders_are_plain_text(
    printed: Callable[..., tuple[int, str]], tmp_path: Path, command: str, options: tuple[str, ...]
) -> None:
    write_example_fleet(tmp_path / "fleet")
    for number, folder in enumerate(sorted((tmp_path / "fleet").iterdir())[:4]):
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": EVIL}))
        folder.rename(folder.with_name(f"{number}{EVIL}"))
    (tmp_path / "fleet" / f"broken{EVIL}").mkdir()
    (tmp_path / "fleet" / f"broken{EVIL}" / "adapter_config.json").write_text("{")
    code, text = printed(command, "fleet", *options)
    assert code == 0, text
    assert harmless(text)


@pytest.mark.promise("Whatever is printed on a terminal has control characters as escapes")
def test_paths_keys_and_arguments_are_plain_text(printed: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    rows = "".join(f"{i},a{i % 3},10,5\n" for i in range(60))
    (tmp_path / f"t{EVIL}.csv").write_text("timestamp_s,adapter_id,input_tokens,output_tokens\n" + rows)
    for line in (
        ("trace", f"t{EVIL}.csv"),
        ("cache", f"t{EVIL}.csv", "--slots", "1"),
        ("run", "s.yaml", EVIL),
        ("check", "s.yaml", "--set", f"{EVIL}=1"),
        ("check", EVIL),
        (EVIL,),
        ("run", f"--{EVIL}"),
    ):
        code, text = printed(*line)
        assert code in (0, 2), text
        assert harmless(text), text


def test_a_line_is_one_line() -> None:
    assert one_line("a\nb\r\x1b[0m\u2028\ud800") == r"a\nb\r\x1b[0m\u2028\ud800"
    assert one_line("a\x1b]0;x\x07\u202eb\r\ud800") == r"a\x1b]0;x\x07\u202eb\r\ud800"
    assert one_line("größer → 5 µs") == "größer → 5 µs"
    assert one_line("5\xa0GB\u202f≤\u2009x") == "5 GB ≤ x"
