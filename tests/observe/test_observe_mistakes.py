"""``loraplan observe`` with readings that mislead: servers come and go, files are out of order, sums are missing."""

from __future__ import annotations

import json
import math
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import CommandLine
from metric_pages import START_S, answer, counted, lora, page

from calibrate.serve.server_metrics import parse_page
from sim.errors import InputError
from sim.rng import stream
from sim.spec.scenario_file import load_scenario
from sim.spec.sections.traffic_laws import GroupsPopularity
from sim.studies.observe.draft import without_prefix
from sim.studies.observe.engine_metrics import read_metrics
from sim.studies.observe.readings import readings_of
from sim.studies.observe.study import BucketHistogram, ObservedService, observed_service

FINISHED = 'vllm:request_success_total{{finished_reason="stop",pod="{pod}"}} {value}\n'
FIXED = "extends: quickstart\nfleet: {engine: fixed, service: {law: fixed, value: 10 ms}}\n"


def of_answer(values: dict[float, str]) -> ObservedService:
    return observed_service(readings_of([page(answer(values))]))


def two_pods(extra: str = "") -> dict[float, str]:
    """A query of 5 points, 600 requests of each pod; pod b, which has long lived, misses the first point."""
    rows = {}
    for number in range(5):
        text = FINISHED.format(pod="a", value=150 * number)
        if number:
            text += FINISHED.format(pod="b", value=1_000_000 + 150 * number) + extra
        rows[START_S + 15 * number] = text
    return rows


def test_a_missing_first_point_is_no_beginning() -> None:
    assert of_answer(two_pods()).finished == 600 + 450


def test_a_server_that_began_meanwhile_counts_from_0(loraplan: CommandLine) -> None:
    for extra in (
        f'process_start_time_seconds{{pod="b"}} {START_S + 1}\n',
        f'vllm:request_success_created{{finished_reason="stop",pod="b"}} {START_S + 1}\n',
    ):
        assert of_answer(two_pods(extra)).finished == 600 + 1_000_600
        old = extra.replace(str(START_S + 1), str(START_S - 1))
        assert of_answer(two_pods(old)).finished == 600 + 450
    Path("old.json").write_text(answer(two_pods(old)), encoding="utf-8")
    Path("new.json").write_text(answer(two_pods(extra)), encoding="utf-8")
    loraplan("observe", "--prometheus", "old.json", "--out", "old.yaml")
    assert "pod b is missing from the first reading" in Path("old.yaml").read_text(encoding="utf-8")
    loraplan("observe", "--prometheus", "new.json", "--out", "new.yaml")
    assert "pod b began after the first reading" in Path("new.yaml").read_text(encoding="utf-8")


def test_labels_that_come_later_count_from_0() -> None:
    rows = two_pods()
    at_s = START_S + 30
    rows[at_s] += 'vllm:request_success_total{finished_reason="length",pod="a"} 7\n'
    assert of_answer(rows).finished == 600 + 450 + 7
    pages = [page("vllm:num_requests_running 0\n", name="a"), page(counted(60, 1.0), START_S + 30, "b")]
    assert observed_service(readings_of(pages)).finished == 60


def test_a_pod_in_place_of_another_is_one_server() -> None:
    rows = {}
    for number in range(10):
        pod = "a" if number < 6 else "b"
        rows[START_S + 15 * number] = FINISHED.format(pod=pod, value=10 * number)
        rows[START_S + 15 * number] += f'vllm:num_requests_running{{pod="{pod}"}} 1\n'
    assert of_answer(rows).servers == 1


def two_files(
    loraplan: CommandLine, *arguments: str, swapped: bool, extra: tuple[str, str] = ("", ""), apart_s: float = 600
) -> Any:
    """What ``observe`` says of files with 100,000 and 100,600 requests, if copying swapped their times."""
    for name, requests, at_s, more in (
        ("before.txt", 100_000, START_S + apart_s * swapped, extra[0]),
        ("after.txt", 100_600, START_S + apart_s * (not swapped), extra[1]),
    ):
        Path(name).write_text(counted(requests, 1.0) + more, encoding="utf-8")
        os.utime(name, (at_s, at_s))
    files = ("--prometheus", "before.txt", "--prometheus", "after.txt")
    Path("observed.yaml").unlink(missing_ok=True)
    Path("observed-lengths.csv").unlink(missing_ok=True)
    return loraplan("observe", *files, *arguments, "--json")


@pytest.mark.parametrize("swapped", [False, True])
def test_files_count_in_the_given_order_if_the_window_is_given(loraplan: CommandLine, swapped: bool) -> None:
    ended = two_files(loraplan, "--window", "10min", swapped=swapped)
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert (found["requests"], found["seconds"]) == (600, 600)


def test_files_in_the_wrong_order_are_refused(loraplan: CommandLine) -> None:
    ended = two_files(loraplan, swapped=True)
    assert ended.code == 2
    assert "counters fall" in ended.err
    assert "got after.txt, before.txt" in ended.err
    assert "--window 10min" in ended.err
    assert not Path("observed.yaml").exists()
    began = "process_start_time_seconds "
    ended = two_files(loraplan, swapped=True, extra=(f"{began}{START_S - 9}\n", f"{began}{START_S}\n"))
    assert ended.code == 2  # the process gets older: no restart does that


def test_times_of_copies_are_refused(loraplan: CommandLine) -> None:
    ended = two_files(loraplan, swapped=False, apart_s=1 / 256)
    assert (ended.code, Path("observed.yaml").exists()) == (2, False)
    assert "3.91 ms is too short: requests take 1 s on average (got before.txt, after.txt)" in ended.err
    assert "such as --window 10min" in ended.err


def test_popularity_does_not_saturate() -> None:
    popular = np.array([0.24, 0.16, 0.12, 0.08, *[0.05] * 8])
    random = stream(1, 0, "test")
    rows = {}
    for number in range(1000):
        busy = random.poisson(popular * 16) > 0  # 16 requests in flight: the first adapter is nearly always there
        names = ",".join(f"a{place:02}" for place in np.flatnonzero(busy))
        at_s = START_S + 15 * number
        rows[at_s] = counted(10 * number, 1.0) + lora(names, at_s)
    shares = of_answer(rows).adapters.shares
    found = np.array([shares[f"a{place:02}"] for place in range(len(popular))])
    # a share p of n readings has the variance p(1 - p)/n, so -ln(1 - p) has p/(1 - p)/n
    idle = np.exp(-popular * 16)
    error = np.sqrt((1 - idle) / idle / 1000) / 16
    assert (abs(found - popular) < 4 * error).all()
    assert found[0] == pytest.approx(0.24, abs=0.03)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_a_shared_text_keeps_the_measured_mean(share: float) -> None:
    tokens = np.maximum(np.rint(np.exp(stream(2, 0, "test").normal(6.5, 1.0, 2000))), 1).astype(np.int64)
    prefix = round(share * tokens.mean())
    rest = without_prefix(tokens, prefix)
    assert prefix + rest.mean() == pytest.approx(tokens.mean(), abs=0.5)
    assert rest.min() >= 1


def test_a_shared_text_of_everything_leaves_a_token() -> None:
    assert without_prefix(np.full(10, 7), 7).tolist() == [1] * 10


def test_aborted_requests_are_offered_and_named(loraplan: CommandLine) -> None:
    aborted = 'vllm:request_success_total{finished_reason="abort"} 300\n'
    Path("m.txt").write_text(counted(600, 1.0) + aborted, encoding="utf-8")
    ended = loraplan.succeeds("observe", "--prometheus", "m.txt", "--window", "10min", "--base", "serve-tiny")
    assert "900 requests (300 of them aborted) in 10 min, 1.5/s" in ended.out
    text = Path("observed.yaml").read_text(encoding="utf-8")
    assert "rate: 1.5/s" in text
    assert "measured: 900 requests ended (300 of them aborted) in 600 s" in text


def test_tokens_of_aborted_requests_are_not_those_of_others() -> None:
    text = 'vllm:request_success_total{finished_reason="stop"} 600\nvllm:prompt_tokens_total 90000\n'
    text += 'vllm:request_success_total{finished_reason="abort"} 300\n'
    assert observed_service(readings_of([page(text)], 600)).mean_tokens("prompt") == 100


def test_a_histogram_without_its_sum_has_no_mean(loraplan: CommandLine) -> None:
    text = "\n".join(line for line in counted(100, 1.5).splitlines() if "_sum " not in line) + "\n"
    found = observed_service(readings_of([page(text)], 100))
    assert found.in_flight is None
    assert found.histograms["ttft"].mean is None
    Path("m.txt").write_text(text, encoding="utf-8")
    assert (
        "ttft_mean_s"
        not in loraplan.data("observe", "--prometheus", "m.txt", "--window", "100 s", "--base", "serve-tiny")["metrics"]
    )
    lengths = np.loadtxt("observed-lengths.csv", delimiter=",", skiprows=1)
    assert lengths.mean(axis=0) == pytest.approx([30, 30], rel=0.01)  # all between 10 and 50
    said = loraplan.refused(
        *("observe", "--prometheus", "m.txt", "--window", "100 s", "--base", "serve-tiny", "--out", "o.yaml"),
        *("--fit-profile", "p.json"),
    )
    assert "lack latencies to correct by (got itl, ttft)" in said


def test_values_without_a_mean_rise_evenly() -> None:
    histogram = BucketHistogram((10.0, 20.0, math.inf), (1.0, 1.0, 0.0), None)
    assert histogram.spread(1000, 40.0).mean() == pytest.approx(10, rel=1e-3)


def test_lengths_that_are_there_are_not_overwritten(loraplan: CommandLine) -> None:
    Path("m.txt").write_text(counted(100, 1.0), encoding="utf-8")
    Path("o-lengths.csv").write_text("mine", encoding="utf-8")
    assert "o-lengths.csv" in loraplan.refused(
        "observe", "--prometheus", "m.txt", "--window", "100 s", "--out", "o.yaml"
    )
    assert Path("o-lengths.csv").read_text(encoding="utf-8") == "mine"
    assert not Path("o.yaml").exists()


def test_a_failed_fit_leaves_no_scenario(loraplan: CommandLine) -> None:
    without = "\n".join(line for line in counted(100, 1.0).splitlines() if "per_output_token" not in line) + "\n"
    Path("m.txt").write_text(without, encoding="utf-8")
    Path("fixed.yaml").write_text(FIXED, encoding="utf-8")
    Path("full.txt").write_text(counted(100, 1.0), encoding="utf-8")
    for file, base, part in (
        ("m.txt", "serve-tiny", "lack latencies to correct by (got itl)"),
        ("full.txt", "fixed.yaml", "fixed.yaml: fleet.engine: this engine has no profile to correct"),
    ):
        said = loraplan.refused(
            *("observe", "--prometheus", file, "--window", "100 s", "--base", base, "--fit-profile", "p.json")
        )
        assert part in said
        assert not list(Path().glob("observed*"))


def test_json_of_what_cannot_be_simulated(loraplan: CommandLine) -> None:
    Path("m.txt").write_text(counted(100, 1.0, tokens=90), encoding="utf-8")
    Path("small.yaml").write_text("extends: serve-tiny\nfleet: {kv_tokens: 16}\n", encoding="utf-8")
    arguments = ("observe", "--prometheus", "m.txt", "--window", "100 s", "--base", "small.yaml")
    found = loraplan.data(*arguments)
    assert found["metrics"] is None
    assert found["scenario"] == "observed.yaml"
    assert "not simulated" in found["notes"][0]


@pytest.mark.parametrize("value", ["1e300", "3e9"])
def test_a_kv_cache_beyond_belief_is_left_out(value: str) -> None:
    text = counted(100, 1.0).replace("vllm:request_success_total", "sglang:num_requests_total")
    text = (
        text.replace("vllm:", "sglang:") + f"sglang:max_total_num_tokens {value}\nsglang:lora_pool_slots_total 1e300\n"
    )
    found = observed_service(readings_of([page(text)], 10))
    assert (found.cache.tokens, found.adapters.slots) == (None, None)


@pytest.mark.parametrize("values", ["null", f"[[1, {'9' * 400}]]", f"[[{'9' * 400}, 1]]"])
def test_points_that_are_none_are_named(values: str) -> None:
    series = f'{{"metric": {{"__name__": "vllm:a"}}, "values": {values}}}'
    text = f'{{"status": "success", "data": {{"resultType": "matrix", "result": [{series}]}}}}'
    with pytest.raises(InputError, match=r"data.result\[0\].values: no points? \(got (?:null|\[)"):
        readings_of([page(text)])


def test_a_window_contradicts_answers_that_have_times() -> None:
    hour = page(answer({START_S: counted(5, 1.0), START_S + 3600: counted(50, 1.0)}))
    assert readings_of([hour]).seconds == 3600
    with pytest.raises(
        InputError, match=r"^--window: the answers say .* \(got 10 min, allowed: 60 min\); leave it out"
    ):
        readings_of([hour], window_s=600)


def test_long_spaces_are_read_fast() -> None:
    began = time.process_time()
    assert list(read_metrics("a" + " " * 60_000 + "{\n")) == []
    assert time.process_time() - began < 1


def test_of_two_names_for_one_metric_the_first_counts() -> None:
    usage = "vllm:kv_cache_usage_perc 0.5\nvllm:gpu_cache_usage_perc 0.5\n"
    found = parse_page(usage + "sglang:num_running_reqs 2\nsglang:num_running_reqs 3\n", 0.0)
    assert found.values == {"kv_usage": 0.5, "running": 5.0}


def few_of_many(readings: int = 40) -> str:
    """A query in which a always runs, and b, c and d once each; e and f are only named by a series of an hour ago."""
    pages = {}
    for number in range(readings):
        at_s = START_S + 15 * number
        running = "a," + "bcd"[number // 10] if number % 10 == 5 and number < 30 else "a"
        pages[at_s] = counted(10 * number, 1.0) + lora(running, at_s) + lora("e,f", at_s - 3600)
    return answer(pages)


@pytest.mark.parametrize(("own", "count"), [(None, 6), (5, 6), (50, 50)])
def test_adapters_that_no_reading_shows_are_there_all_the_same(
    loraplan: CommandLine, own: int | None, count: int
) -> None:
    """Only those that ran in a reading were counted, in place of those that the metrics name and of the base's."""
    Path("q.json").write_text(few_of_many(), encoding="utf-8")
    arguments = ()
    if own is not None:
        Path("base.yaml").write_text(f"extends: quickstart\nadapters: {{count: {own}}}\n", encoding="utf-8")
        arguments = ("--base", "base.yaml")
    ended = loraplan.succeeds("observe", "--prometheus", "q.json", *arguments)
    scenario = load_scenario("observed.yaml").scenario
    law = scenario.workload.popularity
    assert isinstance(law, GroupsPopularity)
    assert (scenario.adapters.count, len(law.weights(count))) == (count, count)
    assert law.weights(count)[4:].sum() == pytest.approx(3 / 43, rel=1e-4)  # 3 of 43 in one reading only
    assert law.weights(count).sum() == pytest.approx(1, rel=1e-4)
    assert ("adapters.count of base.yaml is" in ended.err) == (own is not None)
    note = "raise adapters.count if there are more, and add a group for these to workload.popularity.groups"
    assert (note in ended.err) == (count == 6)
    text = Path("observed.yaml").read_text(encoding="utf-8")  # the note can be followed
    text = text.replace("count: 6 ", "count: 9 ").replace("groups: [", "groups: [{adapters: 3, weight: 0.1}, ")
    Path("more.yaml").write_text(text, encoding="utf-8")
    assert count != 6 or load_scenario("more.yaml").scenario.adapters.count == 9


def test_tenants_of_the_base_keep_its_adapters_and_their_popularity(loraplan: CommandLine) -> None:
    tenants = "[{name: a, adapters: 3, share: 50%}, {name: b, adapters: 2, share: 50%}]"
    base = f"extends: quickstart\nadapters: {{count: 5}}\ntenants: {tenants}\n"
    Path("base.yaml").write_text(base, encoding="utf-8")
    Path("q.json").write_text(few_of_many(), encoding="utf-8")
    ended = loraplan.succeeds("observe", "--prometheus", "q.json", "--base", "base.yaml")
    assert load_scenario("observed.yaml").scenario.adapters.count == 5
    assert "The metrics name 6 adapters; adapters.count of base.yaml is 5." in ended.err


LLAMA, QWEN = "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-7B-Instruct"


def test_the_model_that_the_metrics_name_is_simulated(loraplan: CommandLine) -> None:
    Path("m.txt").write_text(counted(100, 1.0).replace('"m"', f'"{QWEN}"'), encoding="utf-8")
    command = ("observe", "--prometheus", "m.txt", "--window", "50 s")
    ended = loraplan.succeeds(*command)
    assert re.search(r"note: simulated: qwen2.5-7b on NVIDIA H100 80GB.*, profile h100-80gb/qwen2.5-7b/", ended.err)
    assert load_scenario("observed.yaml").scenario.adapters.base_model == QWEN
    assert "measured: model_name" in Path("observed.yaml").read_text(encoding="utf-8")
    Path("base.yaml").write_text("extends: quickstart\n", encoding="utf-8")
    for other, words in (
        (("--from-vllm", f"vllm serve {LLAMA} --enable-lora"), f"--from-vllm: the metrics are .* \\(got {LLAMA}, "),
        (("--base", "base.yaml"), r"base.yaml: adapters.base_model: the metrics are .* \(got llama-3.1-8b, "),
    ):
        said = loraplan.refused(*command, *other, "--out", "o.yaml")
        assert re.search(f"{words}allowed: {QWEN}", said)
        assert not Path("o.yaml").exists()
    command_line = "vllm serve /data/served --enable-lora --served-model-name ours"  # a path says nothing
    loraplan.succeeds(*command, "--from-vllm", command_line, "--out", "path.yaml")
    assert load_scenario("path.yaml").scenario.adapters.base_model == QWEN


def test_metrics_of_several_base_models_are_refused_with_the_query_for_one() -> None:
    def rows(label: str, other: str = QWEN, first: str = LLAMA) -> dict[float, str]:
        pods = (("a", first, 3), ("b", first, 3), ("c", other, 1), ("d", "sql", 1))
        row = FINISHED.replace("pod=", f'{label}="{{model}}",pod=')
        finished = [[row.format(pod=pod, model=model, value=n * each) for pod, model, each in pods] for n in range(5)]
        return {START_S + 15 * n: "".join([*rows, lora("sql", START_S)]) for n, rows in enumerate(finished)}

    with pytest.raises(InputError, match="several base models") as refused:
        of_answer(rows("model_name"))
    assert str(refused.value).endswith('{__name__=~"vllm:.*", pod=~"a|b"}')
    assert of_answer(rows("model")).finished == 32
    with pytest.raises(InputError, match="several base models"):  # a repository that we don't know is another one, too
        of_answer(rows("model_name", "deepseek-ai/DeepSeek-R1"))
    assert of_answer(rows("model_name", "prod-v2")).model == LLAMA, "a name of one's own may be of the same"
    assert of_answer(rows("model_name", "prod-v2", "prod-v1")).finished == 32


def test_only_what_finished_requests_is_a_server(loraplan: CommandLine) -> None:
    """A router, whose gauges have the engine's names, and an idle server in another namespace counted as replicas."""
    pages = {}
    for number in range(30):
        at_s = START_S + 15 * number
        running = "vllm:num_requests_running"
        pages[at_s] = FINISHED.format(pod="a", value=10 * number) + f'{running}{{pod="a"}} 3\n'
        pages[at_s] += FINISHED.format(pod="idle", value=7) + f'{running}{{pod="idle"}} 0\n'
        pages[at_s] += f'{running}{{pod="router",server="a"}} 3\n' + lora("sql", at_s).replace("{", '{pod="idle",')
    found = of_answer(pages)
    assert (found.servers, found.finished, found.running, found.adapters.names) == (1, 290, 3, ())
    Path("q.json").write_text(answer(pages), encoding="utf-8")
    ended = loraplan.succeeds("observe", "--prometheus", "q.json")
    assert "no request finished there: pod idle; pod router. If it is a replica without traffic" in ended.err


def test_several_namespaces_are_named_with_the_query_for_one(loraplan: CommandLine) -> None:
    finished = 'vllm:request_success_total{{namespace="{0}",pod="{0}"}} {1}\n'
    pages = {START_S + at_s: finished.format("prod", 9 * at_s) + finished.format("stage", at_s) for at_s in (0, 60)}
    Path("q.json").write_text(answer(pages), encoding="utf-8")
    ended = loraplan.succeeds("observe", "--prometheus", "q.json")
    assert "several namespaces (prod, stage) count as one fleet" in ended.err
    assert '{__name__=~"vllm:.*", namespace="prod"}' in ended.err


@pytest.mark.parametrize("arguments", [(), ("--window", "10min")])
def test_pages_of_two_servers_are_no_before_and_after(loraplan: CommandLine, arguments: tuple[str, ...]) -> None:
    """Their difference was taken for traffic, at whatever rate the times of the files gave."""
    began = "process_start_time_seconds "
    created = 'vllm:request_success_created{finished_reason="stop"} '
    of_two = (
        "these pages come from different servers (got before.txt, after.txt); for several servers, use a range query"
    )
    for extra in (
        (f"{began}{START_S - 7200}\n", f"{began}{START_S - 3600}\n"),
        (f"{created}{START_S - 7200}\n", f"{created}{START_S - 3600}\n"),
        ("vllm:prompt_tokens_total 9\n", "vllm:prompt_tokens_total 8\n"),  # a counter never falls alone
    ):
        ended = two_files(loraplan, *arguments, swapped=False, extra=extra)
        assert (ended.code, of_two in ended.err) == (2, True), ended.err
    began = 'process_start_time_seconds{pod="a"} '  # where a label says that it is the same pod, it was restarted
    ended = two_files(loraplan, *arguments, swapped=False, extra=(f"{began}{START_S - 9}\n", f"{began}{START_S - 5}\n"))
    assert ended.code == 0, ended.err


def test_one_point_counts_since_the_servers_began(loraplan: CommandLine) -> None:
    """A query without a range was refused with the advice to have what it had."""

    def text(second_s: float) -> str:
        rows = [("a", START_S), ("b", START_S + second_s)]
        began = (f'process_start_time_seconds{{pod="{pod}"}} {at_s}\n' for pod, at_s in rows)
        began = (*began, "process_start_time_seconds 1000\n")  # of another program
        return "".join([*began, *(FINISHED.format(pod=pod, value=300) for pod, _ in rows)])

    for second_s, words in ((0, "its counters began."), (300, "others started later, so the rate is too low.")):
        Path("q.json").write_text(answer({START_S + 600: text(second_s)}), encoding="utf-8")
        out = f"o{second_s}.yaml"
        ended = loraplan.succeeds("observe", "--prometheus", "q.json", "--out", out)
        assert "600 requests in 10 min, 1/s, from 2 servers" in ended.out
        assert words in " ".join(ended.out.split())
