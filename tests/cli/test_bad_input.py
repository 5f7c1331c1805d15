"""What somebody sees who got something wrong: the message, where it points, and the exit code."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import CommandLine
from pydantic import NonNegativeInt, TypeAdapter, ValidationError

from sim.spec.files.problems import value_problem

SCENARIO = """\
schema_version: 1
name: mine
workload:
  requests: 2000
  arrivals: {process: poisson, rate: 5/s}
adapters:
  count: 20
  size: 50 MB
cache:
  gpu: {slots: 8}
run: {replications: 1}
fleet: {engine: continuous}
"""
WITHOUT_DRAWS = ("--set", "fleet.profile=h100-64gb/llama-3.1-8b/assumed")
"""A profile with which a point is simulated once, instead of once more for each draw."""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(SCENARIO)
    return file


HEADER = "timestamp_s,tenant_id,input_tokens,output_tokens\n"


def test_unknown_columns_of_a_trace_are_ignored_with_a_note(loraplan: CommandLine, tmp_path: Path) -> None:
    rows = "".join(f"{i},t{i % 3},5,5,x,y\n" for i in range(50))
    (tmp_path / "t.csv").write_text("\ufeff" + HEADER.strip() + ",colour,shape\n" + rows)
    ended = loraplan.succeeds("run", "tenants-trace", "--set", "workload.trace.file=t.csv")
    assert "columns ignored: colour, shape" in ended.err
    assert "not enough data" in ended.out  # fifty requests have no p99


def test_a_trace_without_adapters_draws_them_with_a_note(loraplan: CommandLine, tmp_path: Path) -> None:
    rows = "".join(f"2023-11-16 18:15:{i:02d}.6805900,100,20\n" for i in range(60))
    (tmp_path / "azure.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    ended = loraplan.succeeds("run", "tenants-trace", "--set", "workload.trace.file=azure.csv")
    assert "the trace names no adapters" in ended.err
    assert "100 adapters" in ended.err


@pytest.mark.parametrize(
    ("value", "says"), [("-1", "out of range (got -1, allowed: at least 0)"), ("x", "must be a whole number (got x)")]
)
def test_a_value_outside_a_scenario_is_explained_like_one_inside(value: str, says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(NonNegativeInt).validate_python(value)
    assert value_problem(caught.value) == says


def test_a_set_that_only_a_point_of_the_sweep_contradicts_fails_only_what_simulates_it(
    loraplan: CommandLine, scenario: Path
) -> None:
    scenario.write_text(SCENARIO + "sweep: {cache.gpu.slots: [4, 16]}\n")
    change = ("--set", "fleet.engine=vllm-0.32", "--set", "cache.host.slots=8", *WITHOUT_DRAWS)
    says = "mine.yaml:13: sweep.cache.gpu.slots: cache.host.slots: every adapter in a slot has a copy in host memory"
    for command in ("sweep", "check"):
        assert says in loraplan.refused(command, "mine.yaml", *change)
    loraplan.succeeds("run", "mine.yaml", *change, "--jobs", "1")
    loraplan.succeeds("sweep", "mine.yaml", *change, "--over", "cache.gpu.slots=4,8", "--jobs", "1")
    ended = loraplan("plan", "mine.yaml", *change, "--set", "slo.ttft_p99=1 h", "--minimize", "cache.gpu.slots=4..8")
    assert "sweep" not in ended.err
    assert ended.code == 0


def test_a_failure_inside_is_one_line_and_debug_shows_it(
    loraplan: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("sim.studies.design.make_design", broken)
    ended = loraplan("run", "quickstart")
    assert ended.code == 3
    assert ended.err == "error: internal failure: ZeroDivisionError: oh; run it again with --debug to see where\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("sweep", "quickstart", "--over", "cache.gpu.slots=8," + "9" * 5000), "not a value YAML can read"),
        (("sweep", "quickstart", "--over", "cache.gpu.slots=" + "[" * 5000), "nested too deeply"),
        (("run", "quickstart", "--set", "workload.duration=1 ms"), "workload.duration: no request arrives in this dur"),
        (("check", "a" * 300), "can't be used: File name too long"),
        (("cache", "t.csv", "--slots", "9" * 5000), "error: --slots: not a number of slots"),
    ],
)
def test_what_is_too_long_or_too_short_is_refused(loraplan: CommandLine, arguments: tuple[str, ...], says: str) -> None:
    assert says in loraplan.refused(*arguments)
