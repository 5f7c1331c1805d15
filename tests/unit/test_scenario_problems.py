"""Every refusal of a scenario, with its file, its line and its words."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenario_samples import BASE, base, refusal, write
from strategies import write_profile

from sim.errors import ScenarioError, SeveralErrors
from sim.spec.files.tree import plain
from sim.spec.files.yaml_tree import parse_yaml
from sim.spec.profile import load_profile
from sim.spec.scenario_file import load_scenario

__all__ = ["base"]  # a fixture, used by its name

# What can't be read as YAML


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "1: the file is empty"),
        ("# only a comment\n", "1: the file is empty"),
        ("- a\n- b\n", "1: a scenario is a mapping of keys (got a list"),
        ("just words\n", "1: a scenario is a mapping of keys (got 'just words'"),
        ("name: a\nworkload:\n\trequests: 1\n", "3: a tab where YAML wants spaces; indent with spaces"),
        ("name: a\nfleet: {replicas: 1\nrun: {seed: 1}\n", "3: not YAML: "),
        ("name: a\nfleet: {}\n run: {}\n", "3: indented by 1, the keys around it, from line 1 on, by 0; indent"),
        ("name: a\ndescription: b: c\n", "2: not YAML: a second colon in one value; put text"),
        ("name: @x\n", "1: not YAML: found character '@' that cannot start any token; put the value in quotes"),
        ("name: a\nname: b\n", "2: the key 'name' occurs twice; the first is in line 1"),
        ("fleet:\n  replicas: 1\n  replicas: 2\n", "3: the key 'replicas' occurs twice; the first is in line 2"),
        ("name: a\n---\nname: b\n", "2: not YAML: a second document begins here"),
        ("name: *a\n", "1: not YAML: found undefined alias 'a'"),
        ('name: "\\ud83d"\n', "1: half a character: an escape of a pair stands alone (got \\ud83d)"),
        ('name: a\n"\\ude00": 1\n', "2: half a character"),
        ("name: !py a\n", "1: YAML tags are not supported (got !py)"),
        ("name: !!int abc\n", "1: not a value YAML can read (got abc)"),
        ("a: &a {x: 1}\nb:\n  <<: *a\n", "3: merge keys (<<) are not supported; use extends"),
        ("name: a\n? [x, y]\n: 1\n", "2: a key must be a word"),
        ("name: a\nx: \x01\n", "2: a character that YAML does not allow"),
        (b"name: a\ndescription: caf\xe9\n", "2: not UTF-8 text (got byte 0xe9); save the file as UTF-8"),
        ("name: " + "[" * 60 + "]" * 60, "1: nested too deeply (allowed: 50 levels)"),
        ("name: " + "[" * 5000, " nested too deeply (allowed: 50 levels)"),
        ("a: &a [*a]\n", "1: nested too deeply"),
        ("# " + "x" * 1_000_000, " too large for a scenario (allowed: at most 1 MB)"),
    ],
)
def test_what_is_not_yaml_is_refused_with_its_line(base: Path, content: str | bytes, message: str) -> None:
    path = base.parent / "odd.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert refusal(path).startswith(f"{path}:{message}")


def test_a_log_in_place_of_a_scenario_is_sent_to_trace(base: Path) -> None:
    path = base.parent / "access.log"
    for size in (1, 100_000):
        path.write_text("1.5,mail,410,64\n" * size, encoding="utf-8")
        assert refusal(path).endswith(f"a log of requests or a trace: loraplan trace {path}")


def test_keys_in_capitals_are_understood_in_the_hint(base: Path) -> None:
    path = base.parent / "odd.yaml"
    path.write_text(base.read_text(encoding="utf-8") + "SLO: {ttft_p99: 1 s}\n", encoding="utf-8")
    assert "SLO: unknown key; did you mean 'slo'?" in refusal(path)


def test_a_service_time_is_a_duration_or_a_law(base: Path) -> None:
    found = [
        load_scenario(str(base), ["fleet.engine=fixed", f"fleet.service={given}"]).scenario.fleet.service
        for given in ("100 ms", "{law: fixed, value: 100 ms}")
    ]
    assert found[0] is not None
    assert found[0] == found[1]


def test_aliases_that_stand_for_a_billion_values_are_refused_soon(base: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    message = refusal(write(base.parent / "bomb.yaml", "\n".join(lines)))
    assert "too many values (allowed: 100000 with aliases written out)" in message


def test_a_byte_order_mark_is_no_problem(base: Path) -> None:
    base.write_bytes(b"\xef\xbb\xbf" + BASE.encode())
    assert load_scenario("base.yaml").scenario.name == "base"


# What is YAML but no scenario: exact messages


def test_missing_sections_are_reported_at_the_top(base: Path) -> None:
    path = write(base.parent / "short.yaml", "# a comment\nschema_version: 1\nname: a\n")
    lines = refusal(path).splitlines()
    more = " (for an example: loraplan scenarios copy quickstart)"
    assert lines == [
        f"{path}:2: workload: is missing; the traffic{more}",
        f"{path}:2: adapters: is missing; the adapters{more}",
    ]


def test_all_problems_come_together_sorted_by_line(base: Path) -> None:
    text = BASE.replace("name: base", "name: a b").replace("12/s", "12").replace("count: 100", "count: x")
    path = write(base.parent / "bad.yaml", text + "zzz: 1\n")
    with pytest.raises(SeveralErrors) as caught:
        load_scenario(str(path), ["run.seed=-1"])
    assert [(error.file, error.line) for error in caught.value.errors] == [
        ("--set", None),
        (str(path), 2),
        (str(path), 6),
        (str(path), 11),
        (str(path), 15),
    ]
    assert caught.value.exit_code == 2


def test_every_broken_rule_is_reported_across_sections_and_within_one(base: Path) -> None:
    across = ["workload.requests=null", "workload.duration=1 min", "run.half_width=5%", "router.spill=full"]
    crash = "faults=[{kind: crash, replica: 7, at: 2 min}]"
    assert [line.split(": ")[1] for line in refusal(base, *across, crash).splitlines()] == [
        "run.half_width",
        "router.spill",
        "faults.0.replica",
        "faults.0.at",
    ]
    within = ["fleet.waiting_ratio=2", "fleet.drain_wait=1 s", "router.spill=full"]
    assert [line.split(": ")[1] for line in refusal(base, *within).splitlines()] == [
        "fleet.drain_wait",
        "fleet.waiting_ratio",
    ], "the rules across sections wait until each section is right"


def test_of_one_key_the_first_problem_is_reported(base: Path) -> None:
    message = refusal(base, "fleet.scheduling=vtc", "fleet.engine=lorax", "fleet.front_end=none")
    assert message.splitlines() == [message]
    assert "engine lorax has no scheduling policy vtc" in message


def test_a_pair_of_escapes_is_one_character_as_in_json() -> None:
    node = parse_yaml('description: "\\ud83d\\ude00"', "x")
    assert node is not None
    assert plain(node) == {"description": "😀"}


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        ({"open_s": 1e308, "bandwidth_bytes_per_s": 1e9}, "load.storage.open_s"),
        ({"bandwidth_bytes_per_s": 1e-300}, "load.storage.bandwidth_bytes_per_s"),
        ({"bandwidth_bytes_per_s": 1e9, "residual": [1.0, 1e300]}, "load.storage.residual"),
    ],
)
def test_costs_that_no_clock_can_count_are_refused(cost: dict[str, object], message: str) -> None:
    profile = write_profile({"fixed_s": 0.001, "tokens": [[0, 0.0], [64, 0.001]]}, storage=cost)
    with pytest.raises(ScenarioError) as refused:
        load_profile(profile)
    assert message in str(refused.value)
    assert "Input should be" in str(refused.value)
