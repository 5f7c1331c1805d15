"""Results of benchmark clients: what is read from each form, and what errors say."""

from __future__ import annotations

import copy
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from sim.errors import InputError
from sim.studies.fidelity.bench_files import distinct_names, read_bench
from sim.studies.fidelity.bench_run import BenchRun, ClosedLoad, JsonFields, OpenLoad

SAMPLES = Path(__file__).with_name("samples")


def run_of(file: Path) -> BenchRun:
    (run,) = read_bench(file)
    return run


def data_of(samples: Path, name: str) -> Any:
    return json.loads((samples / name).read_text(encoding="utf-8"))


def written(folder: Path, data: Any) -> Path:
    file = folder / "result.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    return file


def test_vllm_bench_in_a_closed_loop(samples: Path) -> None:
    run, data = run_of(samples / "vllm-closed.json"), data_of(samples, "vllm-closed.json")
    assert (run.tool, run.load, run.completed, run.model) == ("vllm bench serve", ClosedLoad(4), 60, "base")
    # latencies by row are what the tool itself concludes
    for kind, said in (("ttft", "ttft"), ("tpot", "tpot"), ("itl", "itl")):
        for which, name in (("mean", "mean"), ("p50", "median"), ("p99", "p99")):
            assert run.measured[f"{kind}_{which}_s"] * 1e3 == pytest.approx(data[f"{name}_{said}_ms"], rel=2e-3)
    assert run.measured["e2e_mean_s"] == pytest.approx(np.mean(data["latencies"]), rel=1e-4)
    assert run.prompt.mean == pytest.approx(np.mean(data["input_lens"]))
    # the upper end of an interval of p99 would lie beyond the largest of 60 requests, not of some 1,800 gaps
    assert {"ttft_p90_s", "itl_p99_s"} < run.errors.keys()
    assert not {"ttft_p99_s", "e2e_p99_s"} & run.errors.keys()


def test_vllm_bench_in_an_open_loop(samples: Path) -> None:
    run = run_of(samples / "vllm-open.json")
    assert run.load == OpenLoad(3.0)
    assert run.rows.start_s[0] == 0
    assert (np.diff(run.rows.start_s) >= 0).all()
    assert len(run.rows.start_s) / run.rows.start_s[-1] == pytest.approx(3, rel=0.3)


def test_vllm_bench_without_details(samples: Path, tmp_path: Path) -> None:
    run, data = run_of(samples / "vllm-closed-12.json"), data_of(samples, "vllm-closed-12.json")
    assert run.rows is None
    assert run.measured["ttft_p99_s"] * 1e3 == pytest.approx(data["p99_ttft_ms"])
    half_width = 1.96 * data["std_ttft_ms"] / 1e3 / math.sqrt(80)
    assert run.errors["ttft_mean_s"] == pytest.approx(half_width)
    both = tmp_path / "appended.json"
    both.write_text(
        "".join(json.dumps({**data, "max_concurrency": cap}) + "\n" for cap in (10, None)), encoding="utf-8"
    )
    assert [each.load for each in read_bench(both)] == [ClosedLoad(10), ClosedLoad(80)]
    bursty = {**data, "request_rate": 5.0, "burstiness": 0.25}
    assert run_of(written(tmp_path, bursty)).load == OpenLoad(5.0, 0.25, 12)


def test_guidellm(samples: Path, tmp_path: Path) -> None:
    run = run_of(samples / "guidellm.json")
    assert (run.tool, run.load, run.completed, run.model) == ("GuideLLM", ClosedLoad(3), 24, "base")
    metrics = data_of(samples, "guidellm.json")["benchmarks"][0]["metrics"]
    for kind, name, scale in (
        ("ttft", "time_to_first_token_ms", 1e-3),
        ("tpot", "inter_token_latency_ms", 1e-3),
        ("e2e", "request_latency", 1.0),
    ):
        wanted = metrics[name]["successful"]["mean"] * scale
        assert run.measured[f"{kind}_mean_s"] == pytest.approx(wanted, rel=0.01 if kind != "tpot" else 0.1)
    data = data_of(samples, "guidellm.json")
    (benchmark,) = data["benchmarks"]
    sampled = copy.deepcopy(benchmark)
    sampled["requests"]["successful"] = sampled["requests"]["successful"][:3]  # GuideLLM can keep a sample of requests
    sampled["config"]["strategy"] = {"type_": "poisson", "rate": 2.5, "max_concurrency": None}
    old = copy.deepcopy(sampled)
    old["args"] = {"strategy": {"type_": "constant", "rate": 2.0}}
    del old["config"]
    at_once = copy.deepcopy(sampled)
    at_once["config"]["strategy"] = {"type_": "throughput", "max_concurrency": None}
    at_once["metrics"]["request_concurrency"] = {"successful": {"mean": 2.8, "median": 3}}
    runs = read_bench(written(tmp_path, {**data, "benchmarks": [benchmark, sampled, old, at_once]}))
    assert [each.load for each in runs] == [ClosedLoad(3), OpenLoad(2.5), OpenLoad(2.0, math.inf), ClosedLoad(3)]
    assert runs[1].rows is None
    assert runs[1].measured["ttft_p90_s"] == pytest.approx(
        metrics["time_to_first_token_ms"]["successful"]["percentiles"]["p90"] / 1e3
    )
    assert runs[2].name == "result.json, run 3 of 4"


def test_aiperf_and_genai_perf(samples: Path, tmp_path: Path) -> None:
    new, old = run_of(samples / "aiperf.json"), run_of(samples / "genai-perf.json")
    assert (new.tool, old.tool) == ("AIPerf", "GenAI-Perf")
    assert new.load == old.load == ClosedLoad(4)
    assert new.model == old.model == "base"
    assert new.measured == old.measured
    assert new.measured["ttft_p90_s"] == pytest.approx(0.060)
    assert new.measured["tpot_mean_s"] == pytest.approx(0.0132)
    assert new.prompt.p99 == 85
    data = data_of(samples, "aiperf.json")
    for phase, load in (
        ({"type": "poisson", "rate": 4.0}, OpenLoad(4.0)),
        ({"type": "gamma", "rate": 4.0, "smoothness": 2.0, "concurrency": 9}, OpenLoad(4.0, 2.0, 9)),
        ({"type": "constant", "rate": 4.0}, OpenLoad(4.0, math.inf)),
    ):
        data["input_config"]["phases"] = [{"name": "profiling", **phase}]
        assert run_of(written(tmp_path, data)).load == load
    data["input_config"] = {"loadgen": {"request_rate": 3.0, "arrival_pattern": "constant"}}
    assert run_of(written(tmp_path, data)).load == OpenLoad(3.0, math.inf)


def test_inference_perf(samples: Path) -> None:
    stage, rows = run_of(samples / "inference-perf-stage.json"), run_of(samples / "inference-perf-requests.json")
    assert stage.tool == rows.tool == "inference-perf"
    assert isinstance(stage.load, OpenLoad)
    assert stage.load.rate_rps == pytest.approx(3, rel=0.05)
    data = data_of(samples, "inference-perf-stage.json")["successes"]["latency"]
    assert stage.measured["ttft_p50_s"] == data["time_to_first_token"]["median"]
    assert (stage.completed, rows.completed) == (45, 30)
    first = data_of(samples, "inference-perf-requests.json")[0]
    assert rows.rows.ttft_s[0] == pytest.approx(first["computed_metrics"]["time_to_first_token"], abs=1e-3)
    assert rows.measured["ttft_mean_s"] == pytest.approx(stage.measured["ttft_mean_s"], rel=0.3)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"completed": None}, ["completed", "is missing in a result of vllm bench serve"]),
        ({"total_input_tokens": "many"}, ["total_input_tokens", "got many", "a number"]),
        ({"ttfts": [1.0]}, ["start_times", "lists of the same length"]),
        ({"max_concurrency": -1}, ["max_concurrency", "0 to"]),
        ({"max_concurrency": None, "request_rate": None}, ["request_rate", "is missing"]),
        ({"itls": 3}, ["itls", "a list"]),
        ({"itls": [["x"]]}, ["itls.0.0", "got x", "a number"]),
        ({"itls": [[0.1, float("nan")]]}, ["itls.0.1", "got nan", "a number"]),
        ({"itls": [[0.1], [0.1, 0.2, True]]}, ["itls.1.2", "got true", "a number"]),
        ({"itls": [[0.1], 5]}, ["itls.1", "got 5", "a list"]),
        ({"ttfts": [0.1, 10**400]}, ["ttfts.1", "0 to 1e+15"]),
        ({"ttfts": [0.1, -0.1]}, ["ttfts.1", "got -0.1", "0 to 1e+15"]),
    ],
)
def test_a_missing_field_is_named(samples: Path, tmp_path: Path, change: dict[str, Any], parts: list[str]) -> None:
    file = written(tmp_path, {**data_of(samples, "vllm-closed.json"), **change})
    with pytest.raises(InputError) as caught:
        read_bench(file)
    for part in (str(file), *parts):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change", "parts"),
    [
        ("aiperf.json", {"request_latency": {"p50": 9999.0}}, ["p50 to p99 E2E", "got 9.999 s, 0.61 s, 0.75 s"]),
        ("aiperf.json", {"request_latency": {"unit": "s"}}, ["430 s × 9.1/s: 3,913 requests", "allowed: 0.4 to 8 ("]),
        ("aiperf.json", {"request_latency": {"unit": "us"}}, ["0.00043 s × 9.1/s", "closed loop, 4 at a time"]),
        ("vllm-closed-12.json", {"mean_tpot_ms": 38e3}, ["(mean TTFT + gaps) × requests/s", "allowed: 1.2 to 24 ("]),
        ("vllm-open.json", {"ttfts": [1e3] * 60}, ["1000 s × 2.81111/s", "allowed: 0 to 60 ("]),
        ("vllm-open.json", {"duration": -1}, ["duration", "got -1, allowed: 0 to"]),
        ("vllm-closed-12.json", {"ramp_up_strategy": "linear"}, ["ramp_up_strategy: a rate that ramps up is no"]),
    ],
)
def test_a_result_that_contradicts_itself_is_refused(
    samples: Path, tmp_path: Path, name: str, change: dict[str, Any], parts: list[str]
) -> None:
    data = data_of(samples, name)
    for key, value in change.items():
        data[key] = {**data[key], **value} if isinstance(value, dict) else value
    with pytest.raises(InputError) as caught:
        read_bench(written(tmp_path, data))
    for part in ("result.json", *parts):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("{}", ["is no result of a benchmark that is known", "GuideLLM", "vllm bench serve", "inference-perf"]),
        ('{"a": 1}\n{"b"\n', ["result.json:2: is not JSON: E"]),
        ("", ["is empty"]),
        ("[1, 2]", ["is no result of a benchmark that is known", "list"]),
        ('{"benchmarks": []}', ["has no run with a completed request"]),
        ('{"benchmarks": [{"metrics": {}}]}', ["has no run with a completed request"]),
        ('{"benchmarks": [3]}', ["benchmarks.0", "an object"]),
        ("null", ["got null"]),
        ("[" * 5000, ["too many brackets"]),
    ],
)
def test_unknown_files_say_what_is_known(tmp_path: Path, content: str, parts: list[str]) -> None:
    file = tmp_path / "result.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_bench(file)
    for part in parts:
        assert part in str(caught.value)


def test_gaps_of_several_tokens_and_one_long_answer_are_no_contradiction(samples: Path, tmp_path: Path) -> None:
    data = data_of(samples, "vllm-closed-12.json")
    drafting = {key: value for key, value in data.items() if "tpot" not in key} | {
        "mean_itl_ms": 160,
        "median_itl_ms": 150,
    }
    assert run_of(written(tmp_path, drafting)).measured["itl_mean_s"] == 0.16
    at_once = {**data, "max_concurrency": None, "request_throughput": 1.3, "duration": 61.0}
    assert run_of(written(tmp_path, at_once)).load == ClosedLoad(80)


def test_a_run_without_a_completed_request_is_left_out(samples: Path, tmp_path: Path) -> None:
    good = data_of(samples, "vllm-closed-12.json")
    failed = {**good, "completed": 0, "failed": 60, "total_input_tokens": 0, "total_output_tokens": 0}
    file = tmp_path / "result.json"
    file.write_text(f"{json.dumps(failed)}\n{json.dumps(good)}\n", encoding="utf-8")
    assert [run.completed for run in read_bench(file)] == [good["completed"]]
    with pytest.raises(InputError, match=r"result\.json: has no run with a completed request"):
        read_bench(written(tmp_path, failed))


def test_units_are_read_not_guessed(samples: Path, tmp_path: Path) -> None:
    data = data_of(samples, "aiperf.json")
    data["time_to_first_token"] |= {"unit": "us", "avg": 41_000.0}
    assert run_of(written(tmp_path, data)).measured["ttft_mean_s"] == pytest.approx(0.041)
    data["time_to_first_token"]["unit"] = "fortnights"
    with pytest.raises(InputError, match=r"time_to_first_token\.unit.*fortnights"):
        read_bench(written(tmp_path, data))


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/x.json"], ["x.json"]),
        (["a/x.json", "b/x.json", "b/y.json"], ["a/x.json", "b/x.json", "y.json"]),
        (["r/a/1/x.json", "r/b/1/x.json"], ["a/1/x.json", "b/1/x.json"]),
        (["x.json", "a/x.json"], None),
        (["a/x.json", "a/x.json"], ["x.json", "x.json"]),
    ],
)
def test_names_of_files_are_as_long_as_it_takes(paths: list[str], names: list[str] | None) -> None:
    found = distinct_names([Path(path) for path in paths])
    assert found == names or names is None
    assert len(set(found)) == len(set(paths))


def test_lists_are_checked_at_once(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A detailed result has millions of gaps: one by one, they took most of the time."""
    looked: list[str] = []
    one_by_one = JsonFields._number

    def counted(fields: JsonFields, path: str, value: object) -> float:
        looked.append(path)
        return one_by_one(fields, path, value)

    monkeypatch.setattr(JsonFields, "_number", counted)
    run = run_of(samples / "vllm-closed.json")
    assert len(run.rows.gaps_s) > 500
    assert len(looked) < 20
    data = data_of(samples, "vllm-closed.json")
    assert run.rows.gaps_s.sum() == pytest.approx(sum(map(sum, data["itls"])))


STRANGE = (None, True, -1, 1e300, float("nan"), "", "x", [], {}, [[]], [None], {"a": 1}, [1, "x"], 10**400)


def paths_of(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where values are: all of tables, the first and last of lists."""
    yield path
    if isinstance(data, dict):
        for key, value in data.items():
            yield from paths_of(value, (*path, key))
    elif isinstance(data, list):
        for place in {0, len(data) - 1} if data else ():
            yield from paths_of(data[place], (*path, place))


@examples(200)
@given(st.data())
def test_strange_values_are_errors_or_are_read(data: st.DataObject) -> None:
    """Whatever one value of a file is: it is read, or an error names the file."""
    name = data.draw(st.sampled_from(sorted(file.name for file in SAMPLES.glob("*.json") if "round" not in file.name)))
    document = json.loads((SAMPLES / name).read_text(encoding="utf-8"))
    path = data.draw(st.sampled_from(list(paths_of(document))))
    strange = data.draw(st.sampled_from(STRANGE))
    if path:
        holder = document
        for step in path[:-1]:
            holder = holder[step]
        holder[path[-1]] = strange
    else:
        document = strange
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_text(json.dumps(document), encoding="utf-8")
        said, runs = str(file), []
        try:
            runs = read_bench(file)
        except InputError as error:
            said = str(error)
    assert str(file) in said
    assert all(math.isfinite(value) for run in runs for value in run.measured.values())
