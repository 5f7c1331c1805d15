"""What helps at the prompt: --help, completion, ranges, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from command_line import CommandLine

from sim.cli import app, streams
from sim.cli.options import KeyRange, parse_range

MOST_OPTIONS = 10


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*path, name)
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))


COMMANDS = list(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_opens_with_an_example_of_the_command_and_has_few_options(
    loraplan: CommandLine, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setattr(streams._Guard, "isatty", lambda guard: True)
    monkeypatch.setenv("COLUMNS", "60")
    lines = loraplan(*command, "--help").out.splitlines()
    assert lines[0].startswith(f"Example: loraplan {' '.join(command)}")
    assert max(map(len, lines)) <= 60
    assert len([line for line in lines if line.startswith("  --")]) <= MOST_OPTIONS


def completed(loraplan: CommandLine, monkeypatch: pytest.MonkeyPatch, *words: str) -> list[str]:
    """Return what bash offers for the last word."""
    monkeypatch.setenv("_LORAPLAN_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(("loraplan", *words)))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    return loraplan().out.split()


def test_a_shell_completes_scenarios_profiles_and_keys(loraplan: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("quick-one.yaml").write_text("name: one\n")
    assert completed(loraplan, monkeypatch, "run", "qui") == ["quickstart", "quick-one.yaml"]
    assert completed(loraplan, monkeypatch, "scenarios", "copy", "thou") == ["thousand-adapters"]
    assert completed(loraplan, monkeypatch, "run", "--set", "cache.gpu.sl") == [
        "cache.gpu.slots=",
        "cache.gpu.slots=VALUE",
    ]
    assert completed(loraplan, monkeypatch, "sweep", "--over", "fleet.repl")[0] == "fleet.replicas="
    shown = completed(loraplan, monkeypatch, "profiles", "show", "h100-64gb/llama")
    assert "h100-64gb/llama-3.1-8b/vllm-0.8.5" in shown
    assert all(name.startswith("h100-64gb/llama") for name in shown)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a.b=8..64:8", KeyRange("a.b", "8", "64", "8")),
        ("a.b=8..64", KeyRange("a.b", "8", "64", None)),
        ("a.b = 2/s .. 20/s : 2/s", KeyRange("a.b", "2/s", "20/s", "2/s")),
        ("a.b=20 GB..60 GB:10 GB", KeyRange("a.b", "20 GB", "60 GB", "10 GB")),
        ("a.b=.5..2:25%", KeyRange("a.b", ".5", "2", "25%")),
        ("a.b=8,16,32", None),
        ("a.b=../traces/x.csv", None),
        ("a.b=1/../x.csv", None),
        ("a.b=[1..2]", None),
    ],
)
def test_a_range_is_told_from_lists_and_paths(text: str, found: KeyRange | None) -> None:
    assert parse_range(text) == found


def test_an_error_at_a_point_names_its_values_as_they_are_written(loraplan: CommandLine) -> None:
    ended = loraplan("sweep", "quickstart", "--over", "fleet.tensor_parallel=1,3")
    assert ended.err.rstrip().endswith("; at the point fleet.tensor_parallel=3")


def test_a_group_without_a_command_shows_its_help(loraplan: CommandLine) -> None:
    ended = loraplan("scenarios")
    assert ended.err.startswith("Example: loraplan scenarios list\n\nList and copy the bundled scenarios.\n")


def test_a_path_is_a_link_on_a_terminal_that_shows_links(
    loraplan: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("s.yaml").write_text(
        "schema_version: 1\nname: ab\nworkload: {requests: 50, arrivals: {process: poisson, rate: 5/s}}\n"
        "adapters: {count: 4}\ncache: {gpu: {slots: 4}}\n"
    )
    plain = loraplan("run", "s.yaml", "--quiet", "--out", "a b").out
    assert "\nreport  a b/report.html\n" in plain
    monkeypatch.setattr(streams._Guard, "isatty", lambda guard: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    linked = loraplan("run", "s.yaml", "--quiet", "--out", "a b").out
    uri = (Path.cwd() / "a b" / "report.html").as_uri()
    assert re.search(rf"\nreport  \x1b\]8;;{re.escape(uri)}\x1b\\a b/report.html\x1b\]8;;\x1b\\\n", linked)
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b]8" not in loraplan("run", "s.yaml", "--quiet", "--out", "a b").out


def test_the_page_on_ci_names_the_commands_that_can_check(loraplan: CommandLine) -> None:
    page = (Path(__file__).parents[2] / "docs/notebooks.md").read_text(encoding="utf-8")
    sentence = re.split(r"\.\s", page[page.index("With `--check`") :])[0]
    named = set(re.findall(r"`([a-z]+)`", sentence))
    checking = {"run", "sweep", "plan", "compare", "adapters", "vet"}
    assert named == {name for name in checking if "--check" in loraplan(name, "--help").out}
