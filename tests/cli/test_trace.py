"""``loraplan trace``: what it prints and writes, a scenario that runs, converted files, input that can't be used."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from command_line import CommandLine
from traffic_samples import drawn, traffic

from sim.spec.scenario_file import load_scenario
from sim.spec.sections.trace_source import Trace
from sim.traffic.traces.read import read_trace
from sim.world.build import build_world


@pytest.fixture
def recorded(tmp_path: Path) -> str:
    """A trace of sessions, which it names, and of adapters with names that need quoting."""
    made = traffic(3000, 40, arrivals={"process": "poisson", "rate": "0.1/s"}, sessions={"gap_max": "10 min"})
    chunk = next(made.chunks(0))
    rows = [
        f'{time!r},"a,{adapter}",{prompt},{output}'
        for time, adapter, prompt, output in zip(
            chunk.arrival_s.tolist(),
            chunk.adapter.tolist(),
            chunk.prompt_tokens.tolist(),
            chunk.output_tokens.tolist(),
            strict=True,
        )
    ]
    file = tmp_path / "recorded.csv"
    file.write_text("\n".join(["timestamp_s,adapter_id,input_tokens,output_tokens", *rows, ""]), encoding="utf-8")
    return file.name


def test_what_is_written_is_what_json_says(loraplan: CommandLine, recorded: str) -> None:
    loraplan.succeeds("trace", recorded)
    written = json.loads(Path("runs/trace-recorded/trace.json").read_text(encoding="utf-8"))
    assert written == loraplan.data("trace", recorded)
    assert written["requests"] == 3000
    assert written["adapters"] == len(read_trace(Trace(file=recorded)).names)
    assert written["rate_rps"] == pytest.approx(0.1, rel=0.15)
    # All adapters are equally popular: as many effective ones as there are, but for chance.
    assert 35 < written["concentration"]["effective_adapters"] <= 40


def test_the_scenario_runs_and_its_traffic_is_like_the_trace(loraplan: CommandLine, recorded: str) -> None:
    loraplan("trace", recorded, "--out", "fitted")
    loraplan.succeeds("check", "fitted/traffic.yaml")
    world = build_world(load_scenario("fitted/traffic.yaml").scenario)
    trace = read_trace(Trace(file=recorded))
    times, _ = drawn(world.traffic)
    assert len(times) / times[-1] == pytest.approx(0.1, rel=0.15)
    prompts = np.concatenate([chunk.prompt_tokens for chunk in world.traffic.chunks(0)])
    assert trace.prompt_tokens is not None
    assert np.median(prompts) == pytest.approx(np.median(trace.prompt_tokens), rel=0.1)
    loraplan.succeeds("run", "fitted/traffic.yaml", "--set", "run.replications=1")


def test_a_log_with_a_burst_that_is_not_fitted_is_planned_with_its_replay(loraplan: CommandLine) -> None:
    """Every adapter has bursts of its own, which traffic with a common rate lacks, and five minutes are eight times as
    fast."""
    bursty = {"process": "weibull", "rate": "2/s", "cv": 3.0, "per": "adapter"}
    times, adapters = drawn(traffic(12_000, 40, arrivals=bursty))
    times = np.interp(times, (0, 3000, 5400, times[-1]), (0, 3000, 3300, times[-1] - 2100))
    rows = [
        f"{time},a{each},50,5" for time, each in zip((times - times[0] + 1741078800).tolist(), adapters, strict=True)
    ]
    Path("log.csv").write_text("\n".join(["ts,adapter,prompt_tokens,completion_tokens", *rows, ""]), encoding="utf-8")
    ended = loraplan.succeeds("trace", "log.csv")
    assert re.match(r"From 09:[45]\d:\d\d to 09:5\d:\d\d UTC, requests come at [\d.]+/s", ended.out), ended.out
    assert "Fitted traffic lacks the burst: size with replay.yaml" in ended.out
    assert "next     loraplan plan runs/trace-log/replay.yaml --minimize fleet.replicas=1..8 --set" in ended.out


def test_shared_text_is_not_fitted_and_that_is_said(loraplan: CommandLine) -> None:
    rows = [f"{n},{'ab'[n % 2]},100,5,{n % 2},60" for n in range(400)]  # two adapters with a prompt of 60 tokens each
    header = "timestamp_s,adapter_id,input_tokens,output_tokens,prefix_id,prefix_tokens"
    Path("shared.csv").write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    ended = loraplan.succeeds("trace", "shared.csv")
    # 398 of 400 prompts repeat 60 of their 100 tokens.
    note = (
        "59.7% of its prompt tokens repeat the beginning of an earlier prompt for the same adapter; requests of the "
        "fitted scenario share no text: to keep what they share, replay the trace (workload.trace)"
    )
    assert note in loraplan.data("trace", "shared.csv")["notes"]
    assert note in " ".join(ended.err.split())
    written = Path("runs/trace-shared/traffic.yaml").read_text(encoding="utf-8")
    assert "# The trace's requests share text, and these share none" in written
    assert not build_world(load_scenario("runs/trace-shared/traffic.yaml").scenario).traffic.shares_text


def test_json_writes_nothing_unless_told_where(loraplan: CommandLine, recorded: str, tmp_path: Path) -> None:
    loraplan.data("trace", recorded)
    assert [path.name for path in tmp_path.iterdir()] == [recorded]
    loraplan.data("trace", recorded, "--out", "here")
    assert (tmp_path / "here" / "traffic.yaml").exists()


def test_all_of_it_fitted_leaves_nothing_to_check(loraplan: CommandLine, recorded: str) -> None:
    ended = loraplan.succeeds("trace", recorded, "--fit", "100%")
    assert "nothing is left to check" in ended.err
    assert "checked on nothing" in Path("runs/trace-recorded/traffic.yaml").read_text(encoding="utf-8")
    assert loraplan.data("trace", recorded, "--fit", "25%")["fit"]["share"] == 0.25


def test_a_few_requests_are_described_but_not_fitted(loraplan: CommandLine) -> None:
    Path("few.csv").write_text("timestamp_s,adapter_id,input_tokens,output_tokens\n0,a,5,5\n1,b,5,5\n4,a,9,2\n")
    ended = loraplan.succeeds("trace", "few.csv")
    assert "no traffic is fitted" in ended.err
    assert not Path("runs/trace-few/traffic.yaml").exists()
    found = loraplan.data("trace", "few.csv")
    assert (found["requests"], found["longest_gap_s"], found["fit"]) == (3, 3.0, None)
    assert found["gap_cv"] == pytest.approx(0.5)  # gaps of 1 and 3 s


def test_requests_at_one_instant_have_no_rate(loraplan: CommandLine) -> None:
    Path("burst.csv").write_text("timestamp_s,adapter_id,input_tokens,output_tokens\n" + "5,a,5,5\n" * 300)
    loraplan.succeeds("trace", "burst.csv")
    assert loraplan.data("trace", "burst.csv")["gap_cv"] is None


def test_a_trace_without_adapters_gives_arrivals_and_lengths(loraplan: CommandLine) -> None:
    times, _ = drawn(traffic(2000))
    rows = [f"{int(1000 * time)},10,{20 + place % 7}" for place, time in enumerate(times.tolist())]
    Path("mooncake.csv").write_text("\n".join(["timestamp,input_length,output_length", *rows, ""]))
    loraplan.succeeds("trace", "mooncake.csv")
    loraplan.succeeds("check", "runs/trace-mooncake/traffic.yaml")
    found = loraplan.data("trace", "mooncake.csv")
    assert found["curve"] is None
    assert found["fit"]["chosen"] == "independent"


def test_a_log_is_read_and_the_replay_reads_it_without_guessing(loraplan: CommandLine) -> None:
    rows = [f"{1741078800 + 3 * n},{('base', 'a', 'b')[n % 3]},{10 + n % 7},{20 + n % 5}" for n in range(300)]
    Path("gateway.csv").write_text("\n".join(["ts,model,n_in,n_out", *rows, ""]))
    columns = ("--columns", "input=n_in,output=n_out", "--base-model", "base")
    ended = loraplan.succeeds("trace", "gateway.csv", *columns)
    said = " ".join(ended.err.split())
    assert "read as a log with time = ts, adapter = model, input = n_in, output = n_out; times are seconds" in said
    assert "Guessed: time, adapter, unit; --columns (in a scenario: workload.trace.columns) changes that" in said
    replay = load_scenario("runs/trace-gateway/replay.yaml").scenario
    assert replay.workload.trace.columns is not None
    read = read_trace(replay.workload.trace)
    assert read.notes == ()
    assert (len(read), read.names, read.base_share) == (300, ("a", "b"), pytest.approx(1 / 3))
    loraplan.succeeds("trace", "gateway.csv", *columns, "--requests", "60", "--out", "few")
    loraplan.succeeds("check", "few/replay.yaml")
    loraplan.succeeds("run", "few/replay.yaml")


def test_several_logs_without_lengths_give_a_replay_that_runs(loraplan: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    for day in ("1", "2"):
        stamps = [f"2025-03-0{day} 10:{n // 60:02}:{n % 60:02},{'ab'[n % 2]}" for n in range(120)]
        (tmp_path / "logs" / f"{day}.csv").write_text("\n".join(["when,lora", *stamps, ""]))
    loraplan.succeeds("trace", "logs/2.csv", "logs/1.csv", "--columns", "time=when,input=none,output=none")
    text = Path("runs/trace-2/replay.yaml").read_text(encoding="utf-8")
    assert 'file: ["../../logs/2.csv", "../../logs/1.csv"]' in text
    loraplan.succeeds("check", "runs/trace-2/replay.yaml")
    data = read_trace(load_scenario("runs/trace-2/replay.yaml").scenario.workload.trace or Trace(file=""))
    assert len(data) == 240
    assert data.arrival_s[-1] == 24 * 3600 + 119


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_converted_trace_says_the_same(loraplan: CommandLine, recorded: str, suffix: str) -> None:
    ended = loraplan("trace", recorded, "--out", f"plain{suffix}")
    assert (ended.code, ended.out.strip()) == (0, f"plain{suffix}")
    before, after = (read_trace(Trace(file=file)) for file in (recorded, f"plain{suffix}"))
    assert before.names == after.names
    for name in ("arrival_s", "adapter", "prompt_tokens", "output_tokens"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))


def test_bad_rows_are_refused_by_line_or_left_out_and_counted(loraplan: CommandLine, recorded: str) -> None:
    lines = Path(recorded).read_text(encoding="utf-8").splitlines()
    lines[10] = lines[10].replace('"a,', '"').rsplit(",", 1)[0] + ",-4"
    lines[20] = "nan" + lines[20][lines[20].index(",") :]
    Path("bad.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert "bad.csv:11: output_tokens" in loraplan.refused("trace", "bad.csv")
    found = loraplan.data("trace", "bad.csv", "--skip-bad")
    assert sum(found["skipped"].values()) == 2
    assert found["requests"] == 2998


def test_requests_to_the_base_model_are_counted_and_kept(loraplan: CommandLine, recorded: str) -> None:
    lines = Path(recorded).read_text(encoding="utf-8").splitlines()
    head, rows = lines[0], [line.split('"') for line in lines[1:]]
    mixed = [f"{a}{c}" if number % 4 == 0 else f'{a}"{b}"{c}' for number, (a, b, c) in enumerate(rows)]
    Path("mixed.csv").write_text("\n".join([head, *mixed]) + "\n", encoding="utf-8")
    ended = loraplan.succeeds("trace", "mixed.csv")
    assert re.search(r"for the base model +25 % +of requests: they name no adapter", ended.out)
    assert loraplan.data("trace", "mixed.csv")["base_share"] == 0.25
    adapters = load_scenario("runs/trace-mixed/traffic.yaml", []).scenario.adapters
    assert adapters.base_share == 0.25
