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


def edit(file: Path, old: str, new: str) -> int:
    """Replace text in a scenario and return the line it stands on."""
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    return text[: text.index(old)].count("\n") + 1


def test_the_scenario_itself_is_fine(loraplan: CommandLine, scenario: Path) -> None:
    assert loraplan("check", "mine.yaml").code == 0


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "slots: 8",
            "slotz: 8",
            "cache.gpu.slotz: unknown key (allowed: slots, size, unified, base_model_slot); did you mean 'slots'?",
        ),
        ("size: 50 MB", "size: 50 m", "adapters.size: unknown unit 'm' (got 50 m, allowed: a size such as 50 MB"),
        ("rate: 5/s", "rate: -5/s", "workload.arrivals.rate: a rate must be above zero (got -5/s"),
        ("rate: 5/s", "rate: 5", "workload.arrivals.rate: not a rate (got 5, allowed: a rate such as 12/s"),
        (
            "{slots: 8}",
            "{size: 40 MB}",
            "cache.gpu.size: an adapter is larger than the GPU cache (got 40 MB, allowed: at least 50 MB",
        ),
        (
            "{slots: 8}",
            "{slots: 5000}",
            "cache.gpu.slots: the adapter cache leaves too little GPU memory for a KV cache (got 5000, allowed: up to",
        ),
        ("requests: 2000", "requests: 0", "workload.requests:"),
        ("process: poisson", "process: poison", "workload.arrivals.process: "),
        ("count: 20", "rank: 8", "adapters.count: the number of adapters is missing; give count: 1000"),
    ],
)
def test_a_bad_value_is_named_with_file_and_line(
    loraplan: CommandLine, scenario: Path, old: str, new: str, says: str
) -> None:
    line = edit(scenario, old, new)
    ended = loraplan("run", "mine.yaml")
    assert ended.code == 2
    assert "Traceback" not in ended.err
    first = ended.err.splitlines()[0]
    if old == "count: 20":  # a missing key is reported where its section begins
        line -= 1
    assert first.startswith(f"error: mine.yaml:{line}: {says}")
    assert ended.out == ""
    assert not Path("runs").exists()


def test_several_problems_are_reported_together(loraplan: CommandLine, scenario: Path) -> None:
    edit(scenario, "rate: 5/s", "rate: 5")
    edit(scenario, "slots: 8", "slotz: 8")
    lines = loraplan("run", "mine.yaml").err.splitlines()
    assert [line.split(":")[2] for line in lines] == ["5", "10"]


def test_an_unstable_load_is_simulated_and_called_overloaded(loraplan: CommandLine) -> None:
    ended = loraplan(
        "run",
        "cache-thrash",
        "--set",
        "workload.arrivals.rate=60/s",
        "--set",
        "workload.requests=20000",
        "--set",
        "run.replications=1",
    )
    assert ended.code == 0
    assert "overloaded: loads need 1.6" in ended.err
    assert "verloaded" in ended.out
    assert "unsettled" in ended.out


def test_an_overloaded_run_fails_its_check(loraplan: CommandLine) -> None:
    ended = loraplan(
        "run",
        "cache-thrash",
        "--set",
        "workload.arrivals.rate=60/s",
        "--set",
        "workload.requests=20000",
        "--set",
        "run.replications=1",
        "--check",
        "--quiet",
    )
    assert ended.code == 1


HEADER = "timestamp_s,tenant_id,input_tokens,output_tokens\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "t.csv: the trace is empty"),
        (HEADER, "t.csv:1: the trace has a header but no requests"),
        (HEADER + "1,a,5,5\n0.5,b,5,5\n", "t.csv:3: timestamp_s: time runs backwards (got 0.5"),
        (HEADER + "1,a,5,5\n2,b,-5,5\n", "t.csv:3: input_tokens: not a usable number (got -5"),
        (HEADER + "1,a,5,5\n2,b,x,5\n", "t.csv:3: input_tokens: not a usable number (got x"),
        (HEADER + "1,a,5,5\nnan,b,5,5\n", "t.csv:3: timestamp_s: not a usable number (got nan"),
        (HEADER + "1,a,5,1.5\n", "t.csv:2: output_tokens: not a token count (got 1.5"),
        (HEADER + "1,a,5,99999999999\n", "t.csv:2: output_tokens: not a token count"),
        (
            "time,adapter,in,out\n1,a,5,5\n",
            "t.csv:1: columns are missing: input_tokens, output_tokens (got time, adapter, in, out",
        ),
        ("timestamp_s,input_tokens,output_tokens\n1,5,5\n", "t.csv:1: column adapter_id or tenant_id is missing"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nlater,5,5\n", "t.csv:2: TIMESTAMP: not a time (got later"),
    ],
)
def test_a_bad_trace_is_named_with_file_and_row(loraplan: CommandLine, tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    ended = loraplan("run", "tenants-trace", "--set", "workload.trace.file=t.csv")
    assert ended.code == 2
    assert says in ended.err
    assert "Traceback" not in ended.err


def test_bytes_that_are_no_text_are_refused(loraplan: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(HEADER.encode() + b"1,\xff\xfe,5,5\n")
    ended = loraplan("run", "tenants-trace", "--set", "workload.trace.file=t.csv")
    assert ended.code == 2
    assert "not UTF-8 text" in ended.err


def test_unknown_columns_of_a_trace_are_ignored_with_a_note(loraplan: CommandLine, tmp_path: Path) -> None:
    rows = "".join(f"{i},t{i % 3},5,5,x,y\n" for i in range(50))
    (tmp_path / "t.csv").write_text("\ufeff" + HEADER.strip() + ",colour,shape\n" + rows)
    ended = loraplan("run", "tenants-trace", "--set", "workload.trace.file=t.csv")
    assert ended.code == 0
    assert "columns ignored: colour, shape" in ended.err
    assert "not enough data" in ended.out  # fifty requests have no p99


def test_a_trace_without_adapters_draws_them_with_a_note(loraplan: CommandLine, tmp_path: Path) -> None:
    rows = "".join(f"2023-11-16 18:15:{i:02d}.6805900,100,20\n" for i in range(60))
    (tmp_path / "azure.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    ended = loraplan("run", "tenants-trace", "--set", "workload.trace.file=azure.csv")
    assert ended.code == 0
    assert "the trace names no adapters" in ended.err
    assert "100 adapters" in ended.err


@pytest.mark.parametrize("out", ["file/below", "/proc/loraplan"])
def test_an_unwritable_folder_is_refused_before_simulating(loraplan: CommandLine, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("")
    ended = loraplan("run", "quickstart", "--out", out)
    assert ended.code == 2
    assert out.split("/")[1 if out.startswith("/") else 0] in ended.err
    assert "can't" in ended.err


def test_a_folder_with_other_files_is_left_alone(loraplan: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/thesis.txt").write_text("years of work")
    ended = loraplan("run", "quickstart", "--out", "precious", "--overwrite")
    assert ended.code == 2
    assert "this folder holds other files (got thesis.txt" in ended.err
    assert [file.name for file in (tmp_path / "precious").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("plann", "quickstart"), "No such command 'plann'"),
        (("run",), "Missing argument"),
        (("run", "quickstart", "--bogus"), "No such option: --bogus"),
        (("check", "quickstart", "--set", "slo.bogus="), "--set: slo.bogus: unknown key"),
        (("check", "quickstart", "--set", "bogus=null"), "--set: bogus: unknown key"),
        (
            ("run", "quickstart", "--max-loras", "8"),
            "--max-loras of vLLM and TensorRT-LLM is cache.gpu.slots here; values",
        ),
        (("plan", "quickstart", "--tp", "2"), "GPUs of one replica, for which there must be a profile"),
        (
            ("run", "quickstart", "--set", "--max-loras=8"),
            "--max-loras of vLLM and TensorRT-LLM is cache.gpu.slots here",
        ),
        (("sweep", "quickstart", "--over", "max_loras=8,16"), "max_loras: unknown key; --max-loras of vLLM and"),
        (("plan", "quickstart", "--minimize", "max_loras=8..16"), "max_loras: unknown key; --max-loras of vLLM and"),
        (
            ("run", "quickstart", "--set", "fleet.engine=vllm-0.7"),
            "the nearest preset is vllm-0.8: vLLM up to 0.7 runs the V0 engine",
        ),
        (
            ("run", "quickstart", "--set", "fleet.engine=vllm-0.99"),
            "the nearest preset is vllm-0.33: vLLM from 0.34 on was not read",
        ),
        (("run", "quickstart", "--jobs", "0"), "--jobs: not a number of workers"),
        (("run", "quickstart", "--set", "cache.gpu.slots="), "give either slots or size (got neither)"),
        (("run", "quikstart"), "did you mean 'quickstart'"),
        (("run", "quickstart", "--check", "--set", "slo=null"), "slo: the scenario has no SLO to check"),
        (("sweep", "quickstart", "--over", "slots"), "--over: not a key and its values"),
        (("sweep", "quickstart", "--set", "sweep=null"), "sweep: nothing to sweep"),
        (("sweep", "quickstart", "--over", "cache.gpu.slots=8,nine"), "cache.gpu.slots: must be a whole number"),
        (("sweep", "quickstart", "--over", "cache.gpu.slots=8," + "9" * 5000), "not a value YAML can read"),
        (("sweep", "quickstart", "--over", "cache.gpu.slots=" + "[" * 5000), "nested too deeply"),
        (("sweep", "quickstart", "--over", "cache.gpu.slots=8,*a"), "not YAML: found undefined alias"),
        (
            ("sweep", "quickstart", "--set", "cache.host.slots=6000", "--over", "cache.gpu.slots=8,5000"),
            "leaves too little GPU memory",
        ),
        (("report", "nowhere"), "nowhere: no such folder"),
        (("run", "quickstart", "--set", "fleet.engine=lorex"), "did you mean 'lorax'?"),
        (("run", "quickstart", "--set", "rollouts=[{a: 1}]"), "rollouts.0.strategy: is missing"),
    ],
)
def test_a_wrong_command_line_says_so(loraplan: CommandLine, arguments: tuple[str, ...], says: str) -> None:
    ended = loraplan(*arguments)
    assert ended.code == 2
    assert says in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(("option", "value"), [("--seed", "-1"), ("--jobs", "-7"), ("--seed", "x")])
def test_an_option_that_can_not_be_says_what_it_got(loraplan: CommandLine, option: str, value: str) -> None:
    ended = loraplan("run", "quickstart", option, value)
    assert ended.code == 2
    message = ended.err.splitlines()[0]
    assert option in message
    assert value in message.partition(option)[2]
    assert "Input should" not in message


@pytest.mark.parametrize(
    ("value", "says"),
    [("-1", "out of range (got -1, allowed: at least 0)"), ("x", "must be a whole number (got x)")],
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
        ended = loraplan(command, "mine.yaml", *change)
        assert ended.code == 2
        assert says in ended.err
    assert loraplan("run", "mine.yaml", *change, "--jobs", "1").code == 0
    assert loraplan("sweep", "mine.yaml", *change, "--over", "cache.gpu.slots=4,8", "--jobs", "1").code == 0
    ended = loraplan("plan", "mine.yaml", *change, "--set", "slo.ttft_p99=1 h", "--minimize", "cache.gpu.slots=4..8")
    assert "sweep" not in ended.err
    assert ended.code == 0


def test_a_scenario_that_extends_one_with_a_sweep_has_nothing_to_sweep(loraplan: CommandLine, scenario: Path) -> None:
    scenario.write_text(SCENARIO + "sweep: {cache.gpu.slots: [4, 16]}\n")
    scenario.with_name("child.yaml").write_text("schema_version: 1\nname: child\nextends: mine.yaml\n")
    ended = loraplan("sweep", "child.yaml")
    assert ended.code == 2
    assert "child.yaml: sweep: nothing to sweep; give --over" in ended.err
    assert "extends inherits none" in ended.err


def test_a_failure_inside_is_one_line_and_debug_shows_it(
    loraplan: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("sim.studies.sweep.make_design", broken)
    ended = loraplan("run", "quickstart")
    assert ended.code == 3
    assert ended.err == "error: internal failure: ZeroDivisionError: oh; run it again with --debug to see where\n"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("fleet.kv_tokens=10",), "fleet.kv_tokens: not one KV block fits"),
        (("workload.duration=1 ms",), "workload.duration: no request arrives in this duration"),
        (("workload.arrivals.rate=1e-300/s",), "workload.arrivals.rate: not a rate that can be simulated"),
        (("adapters.count=100000000",), "adapters.count"),
        (("adapters.rank=200", "cache.gpu.slots=2"), "adapters.rank: more than twice what the profile"),
        (("storage.mode=blocking", "storage.loaders=2"), "storage.loaders: blocking loads run one after the other"),
        (
            ("fleet.engine=fixed", "fleet.service={law: fixed, value: 1 ms}", "fleet.load_at=admission"),
            "fleet.load_at: engine fixed has no load_at",
        ),
        (
            ("workload={duration: 1 min, arrivals: {process: poisson, rate: 1/s}}", "run.half_width=5%"),
            "run.half_width: only a run of generated requests can be lengthened",
        ),
    ],
)
def test_values_that_can_not_go_together_are_refused(
    loraplan: CommandLine, settings: tuple[str, ...], says: str
) -> None:
    ended = loraplan("run", "quickstart", *(part for setting in settings for part in ("--set", setting)))
    assert ended.code == 2
    assert says in ended.err


@pytest.mark.parametrize(
    ("over", "says"),
    [
        (("cache.gpu.slots=16", "cache.gpu.slots=32"), "given twice"),
        (("cache.gpu.slots=16,16",), "a value occurs twice"),
        (("name=a,b",), "can't be swept"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(loraplan: CommandLine, over: tuple[str, ...], says: str) -> None:
    ended = loraplan("sweep", "quickstart", *(part for text in over for part in ("--over", text)))
    assert ended.code == 2
    assert says in ended.err


def test_a_row_with_more_cells_than_the_header_is_refused(loraplan: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(HEADER + "1,a,5,5,9\n2,a,5,5,9\n")
    ended = loraplan("run", "tenants-trace", "--set", "workload.trace.file=t.csv")
    assert ended.code == 2
    assert "t.csv:2: not as many cells as the header (got 5, allowed: 4)" in ended.err
