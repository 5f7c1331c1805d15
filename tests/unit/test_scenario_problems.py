"""Every refusal of a scenario, with its file, its line and its words."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenario_samples import BASE, base, edited, refusal, write
from strategies import write_profile

from sim.errors import ScenarioError, SeveralErrors
from sim.spec.files.tree import plain
from sim.spec.files.yaml_tree import parse_yaml
from sim.spec.profile import load_profile
from sim.spec.scenario_file import load_scenario

__all__ = ["base"]  # a fixture, used by its name

PROCESSES = "poisson, gamma, bursty, weibull, on-off, piecewise, diurnal, mmpp, closed"


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


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "  requests: 1000",
            "  request: 1000",
            "5: workload.request: unknown key (allowed: requests, duration, "
            "start, arrivals, popularity, sessions, drift, churn, tokens, prefix, trace); did you mean 'requests'?",
        ),
        ("description: A", "descripton: A", "3: descripton: unknown key; did you mean 'description'?"),
        (
            "schema_version: 1",
            "schema_version: 2",
            "1: schema_version: not one of the known values (got 2, allowed: 1)",
        ),
        (
            "name: base",
            "name: my scenario",
            "2: name: not a usable name (got my scenario, allowed: letters, digits, "
            "and . _ - inside, at most 64 of them)",
        ),
        ("name: base", "name: 7", "2: name: must be text (got 7); put it in quotes"),
        ("requests: 1000", "requests: 0", "5: workload.requests: out of range (got 0, allowed: above 0)"),
        ("requests: 1000", "requests: many", "5: workload.requests: must be a whole number (got many)"),
        ("requests: 1000", "requests: 2.5", "5: workload.requests: must be a whole number (got 2.5)"),
        ("requests: 1000", "requests: true", "5: workload.requests: must be a number (got true)"),
        (
            "requests: 1000",
            "duration: 1 hour",
            "5: workload.duration: unknown unit 'hour' (got 1 hour, allowed: a time "
            "such as 20 ms; units ns, us, µs, ms, s, min, h, d)",
        ),
        (
            "requests: 1000",
            "duration: true",
            "5: workload.duration: not a time (got True, allowed: a time such as "
            "20 ms; units ns, us, µs, ms, s, min, h, d)",
        ),
        (
            "rate: 12/s",
            "rate: 12",
            "6: workload.arrivals.rate: not a rate (got 12, allowed: a rate such as 12/s, 90/min or 500/h); write 12/s",
        ),
        (
            ", rate: 12/s",
            "",
            "6: workload.arrivals.rate: is missing; mean requests per unit of time over all adapters, such as 12/s",
        ),
        ("process: poisson, ", "", f"6: workload.arrivals.process: is missing (allowed: {PROCESSES})"),
        (
            "poisson",
            "poison",
            f"6: workload.arrivals.process: unknown process (got poison, allowed: {PROCESSES}); "
            "did you mean 'poisson'?",
        ),
        ("rate: 12/s", "rate: 12/s, poisson: 1", "6: workload.arrivals.poisson: unknown key (allowed: process, rate)"),
        (
            "{process: poisson, rate: 12/s}",
            "12/s",
            "6: workload.arrivals: must be a section with keys of its own (got "
            f"12/s, allowed: {{process: ...}} with one of {PROCESSES})",
        ),
        (
            "{slots: 8}",
            "8",
            "14: cache.gpu: must be a section with keys of its own (got 8, allowed: the keys slots, "
            "size, unified, base_model_slot)",
        ),
        (
            "exponent: 0.9",
            "exponent: 0.9\n    alpha: 0.9",
            "10: workload.popularity.alpha: unknown key (allowed: law, exponent); did you mean 'exponent'?",
        ),
        ("exponent: 0.9", "exponent: .nan", "9: workload.popularity.exponent: must be a finite number (got nan)"),
        (
            "exponent: 0.9",
            "exponent: 11",
            "9: workload.popularity.exponent: out of range (got 11, allowed: at most 10)",
        ),
        (
            "exponent: 0.9",
            "exponent: -1",
            "9: workload.popularity.exponent: out of range (got -1, allowed: at least 0)",
        ),
        (
            "[q, v]",
            "[q, w]",
            "12: adapters.targets.1: not one of the known values (got w, allowed: q, k, v, o, gate, up, down)",
        ),
        (
            "[q, v]",
            "all",
            "12: adapters.targets: not one of the known values (got all, allowed: all-linear or a list of"
            " q, k, v, o, gate, up, down)",
        ),
        (
            "[q, v]",
            "[q, v]\n  dtype: fp6",
            "13: adapters.dtype: not one of the known values (got fp6, allowed: fp16, "
            "bf16, fp32, fp8); did you mean 'fp16'?",
        ),
        (
            "[q, v]",
            "[q, v]\n  mix: {share: 1}",
            "13: adapters.mix: must be a list (got {'share': 1}); write '- ' before its first key",
        ),
        (
            "  targets: [q, v]",
            "  mix:\n  - {share: 60%}\n  - {share: 20%, rank: x}",
            "14: adapters.mix.1.rank: must be a whole number (got x)",
        ),
        (
            "  targets: [q, v]",
            "  rank: 18446744073709551616",
            "12: adapters.rank: out of range (got 18446744073709551616, allowed: at most 4096)",
        ),
        (
            "  targets: [q, v]",
            "  mix:\n  - {share: 60%}\n  - {share: 20%}",
            "12: adapters.mix: the shares of a mix must add up to 100% (got 80.00%)",
        ),
        (
            "{slots: 8}",
            "{slots: 8, size: 1 GB}",
            "14: cache.gpu.slots: give either slots or size (got slots 8, size 1000000000)",
        ),
        (
            "  gpu:",
            "  eviction: lur\n  gpu:",
            "14: cache.eviction: unknown eviction policy (got lur, allowed: lru, "
            "fifo, clock, lfu, lfu-history, sieve, s3-fifo, gdsf, random, refcount-score, belady, vllm-lru, "
            "discard-when-idle, cycle); did you mean 'lru'?",
        ),
        (
            "cache:",
            "rollouts: [x]\ncache:",
            "13: rollouts.0: must be a section with keys of its own (got x, allowed: "
            "the keys strategy, "
            "at, adapter, share, count, stages, dwell, gate, spread, propagation, sticky, keep_old, ...)",
        ),
        (
            "cache:",
            "rollouts: [{strategy: in-place, at: 5 s, stages: [50%]}]\ncache:",
            "13: rollouts.0.stages: the last stage must reach 100 % (got 50%); end with 100%",
        ),
        (
            "cache:",
            "faults: [{kind: crash, replica: 1, at: 5 s}]\ncache:",
            "13: faults.0.replica: no such replica (got 1, allowed: 0 to 0)",
        ),
        (
            "cache:",
            "faults: [{kind: misrouting, probability: 1.5}]\ncache:",
            "13: faults.0.probability: a share lies between 0 and 1 (got 1.5, allowed: a share such as 5% or 0.05, "
            "from 0 to 1)",
        ),
        (
            "cache:",
            "storage: {load: {law: lognormal, mean: 20 ms, p99: 10 ms}}\ncache:",
            "13: storage.load.p99: p99 must be above the mean "
            "(got 10 ms, allowed: above the mean and at most 14.97 times it)",
        ),
    ],
)
def test_a_bad_value_is_refused_in_plain_words(base: Path, old: str, new: str, message: str) -> None:
    path = edited(base, old, new)
    assert refusal(path) == f"{path}:{message}"


def test_missing_sections_are_reported_at_the_top(base: Path) -> None:
    path = write(base.parent / "short.yaml", "# a comment\nschema_version: 1\nname: a\n")
    lines = refusal(path).splitlines()
    assert lines == [f"{path}:2: workload: is missing; the traffic", f"{path}:2: adapters: is missing; the adapters"]


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
