"""``loraplan observe``: metrics of a real vLLM, of older ones and of SGLang become traffic, and are compared."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import CommandLine
from metric_pages import START_S, answer, counted, lora, page

from sim.spec.scenario_file import load_scenario
from sim.studies.observe.findings import ComparedMetric
from sim.studies.observe.readings import readings_of
from sim.studies.observe.study import BucketQuantile, observed_service
from sim.studies.predicted_service import predict_service
from sim.world.build import build_world


def test_two_pages_of_a_real_vllm_become_a_scenario(loraplan: CommandLine, samples: Path) -> None:
    pages = [word for name in ("before", "after") for word in ("--prometheus", str(samples / f"vllm-{name}.txt"))]
    found = loraplan.data("observe", *pages, "--window", "7 s", "--base", "serve-tiny")
    assert (found["engine"], found["servers"], found["requests"]) == ("vllm", 1, 42)
    assert found["offered_rps"] == pytest.approx(6)
    assert found["metrics"]["requests_per_s"]["measured"] == pytest.approx(6)
    loraplan.succeeds("check", "observed.yaml")
    scenario = load_scenario("observed.yaml").scenario
    assert scenario.workload.arrivals.rate == pytest.approx(6)
    assert scenario.cache.gpu.slots == 8  # the base's, and the server's
    lengths = np.loadtxt("observed-lengths.csv", delimiter=",", skiprows=1)
    grown = {}
    for column, name in ((0, "request_prompt_tokens"), (1, "request_generation_tokens")):
        sums, counts = (
            [
                float(line.rsplit(" ", 1)[1])
                for file in ("before", "after")
                for line in (samples / f"vllm-{file}.txt").read_text().splitlines()
                if line.startswith(f"vllm:{name}_{what}{{")
            ]
            for what in ("sum", "count")
        )
        grown[column] = (sums[1] - sums[0]) / (counts[1] - counts[0])
    assert lengths.mean(axis=0) == pytest.approx([grown[0], grown[1]], rel=0.01)


@pytest.mark.parametrize(
    ("simulated", "error"), [(0.0911, 0.0911 / 0.1 - 1), (0.1, None), (0.2, None), (0.3, 0.3 / 0.25 - 1)]
)
def test_a_quantile_is_compared_with_the_nearer_bound_of_its_bucket(simulated: float, error: float | None) -> None:
    row = ComparedMetric("ttft_p90_s", 0.163, simulated, BucketQuantile(0.163, 0.1, 0.25))
    assert row.error == (error if error is None else pytest.approx(error))


def test_a_profile_is_corrected_by_what_was_measured(loraplan: CommandLine, samples: Path) -> None:
    pages = [word for name in ("before", "after") for word in ("--prometheus", str(samples / f"vllm-{name}.txt"))]
    metrics = loraplan.data(
        "observe", *pages, "--window", "7 s", "--base", "serve-tiny", "--fit-profile", "fitted.json"
    )["metrics"]
    # by itself, the profile is a third too fast for that machine
    assert metrics["itl_mean_s"]["simulated"] == pytest.approx(metrics["itl_mean_s"]["measured"], rel=0.05)
    assert metrics["ttft_mean_s"]["simulated"] == pytest.approx(metrics["ttft_mean_s"]["measured"], rel=0.1)
    assert load_scenario("observed.yaml").scenario.fleet.profile is not None
    kept = json.loads((samples / "round-trip.json").read_text(encoding="utf-8"))
    world = build_world(load_scenario("observed.yaml", [f"workload.arrivals.rate={kept['high_rps']}/s"]).scenario)
    assert world.pools[0].profile is not None
    predicted = predict_service(world, 1)
    for kind in ("ttft", "e2e"):  # the other load that the same server was measured with
        assert predicted.quantile(kind, 0.5) == pytest.approx(np.median(kept["high"][f"{kind}_p50_s"]), rel=0.2)


def test_errors_before_a_fit_are_those_without_one(loraplan: CommandLine) -> None:
    Path("m.txt").write_text(counted(100, 1.0), encoding="utf-8")
    Path("few.yaml").write_text("extends: quickstart\nworkload: {requests: 100}\n", encoding="utf-8")
    command = ("observe", "--prometheus", "m.txt", "--window", "50 s", "--base", "few.yaml", "--out")
    plain, fitted = loraplan(*command, "a.yaml").out, loraplan(*command, "b.yaml", "--fit-profile", "p.json").out
    for name in ("mean TTFT", "mean ITL"):
        before = next(line for line in fitted.splitlines() if line.startswith("metrics ") and name in line).split()[-2]
        assert next(line for line in plain.splitlines() if line.startswith(name)).endswith(f" {before}")


def test_growth_is_between_two_pages_and_survives_a_restart() -> None:
    first, last = page(counted(100, 1.0), name="a"), page(counted(160, 1.0), START_S + 30, "b")
    found = observed_service(readings_of([first, last]))
    assert (found.finished, found.seconds, found.offered_rps) == (60, 30, 2)
    began = "process_start_time_seconds "
    old = page(counted(100, 1.0) + f"{began}{START_S - 900}\n", name="a")
    new = page(counted(40, 1.0) + f"{began}{START_S + 5}\n", START_S + 20, "b")
    for window_s in (None, 20):  # the time since it was restarted, not since the first page
        again = readings_of([old, new], window_s)
        assert (observed_service(again).finished, again.seconds) == (40, 15)
        assert "b alone: totals since the server was restarted after a" in again.source
    alone = readings_of([first], window_s=50)
    assert observed_service(alone).offered_rps == 2


def test_requests_in_flight_count_as_offered() -> None:
    waiting = 'vllm:num_requests_waiting{model_name="m"} '
    pages = [
        page(counted(0, 1.0) + f"{waiting}5\n", name="a"),
        page(counted(100, 1.0) + f"{waiting}45\n", START_S + 10, "b"),
    ]
    found = observed_service(readings_of(pages))
    assert found.offered == 140


def test_old_and_new_names_give_the_same() -> None:
    old = counted(100, 1.0) + "vllm:gpu_cache_usage_perc 0.5\n"
    new = old.replace("time_per_output_token_seconds", "inter_token_latency_seconds").replace("gpu_cache", "kv_cache")
    plain = old.replace("request_success_total", "request_success")
    found = [observed_service(readings_of([page(text)], 10)) for text in (old, new, plain)]
    assert found[0] == found[1] == found[2]
    assert found[0].histograms["itl"].mean == pytest.approx(0.01)


def test_sglang_is_read() -> None:
    text = (
        counted(100, 1.0).replace("vllm:request_success_total", "sglang:num_requests_total").replace("vllm:", "sglang:")
    )
    text += "sglang:prompt_tokens_total 4000\nsglang:generation_tokens_total 2000\nsglang:cached_tokens_total 1000\n"
    found = observed_service(readings_of([page(text)], 10))
    assert found.engine == "sglang"
    assert found.prefix_hits == 0.25
    assert found.mean_tokens("output") == 20
    assert found.histograms["ttft"].mean == pytest.approx(0.25)


def test_range_queries_show_means_and_popularity(loraplan: CommandLine) -> None:
    pages = {}
    for number in range(40):
        at_s = START_S + 15 * number
        names = "a,b" if number % 4 == 0 else "a"
        info = lora(names, at_s) + lora("a" if names != "a" else "a,b", at_s - 15)  # the other series is of earlier
        running = f'vllm:num_requests_running{{instance="x"}} {number % 3}\n'
        running += 'vllm:num_requests_running{instance="y"} 1\n'
        pages[at_s] = counted(10 * number, 1.0) + info + running
    Path("q.json").write_text(answer(pages), encoding="utf-8")
    found = observed_service(readings_of([page(Path("q.json").read_text(encoding="utf-8"))]))
    assert (found.seconds, found.finished) == (585, 390)
    assert found.servers == 2
    assert found.running == pytest.approx(np.mean([number % 3 + 1 for number in range(40)]))
    loads = np.array([np.log(80), -np.log(0.75)])  # a in all of 40 readings, b in a quarter of them
    assert found.adapters.shares == pytest.approx(dict(zip("ab", loads / loads.sum(), strict=True)))
    assert found.adapters.always == ("a",)
    assert found.adapters.slots == 4
    ended = loraplan.succeeds("observe", "--prometheus", "q.json")
    scenario = load_scenario("observed.yaml").scenario
    assert (scenario.fleet.replicas, scenario.adapters.count, scenario.cache.gpu.slots) == (2, 2, 4)
    assert scenario.workload.popularity.law == "groups"
    assert "running requests" in ended.out


def test_an_adapter_that_only_waits_for_a_slot_is_counted() -> None:
    """One that runs at times is counted by these: while it waits, it asks for no more."""
    pages = {}
    for number in range(40):
        waiting = "hr,a" if number % 2 else "hr"
        info = lora("" if number % 2 else "a", START_S + 15 * number)
        info = info.replace('waiting_lora_adapters=""', f'waiting_lora_adapters="{waiting}"')
        pages[START_S + 15 * number] = counted(10 * number, 1.0) + info
    found = observed_service(readings_of([page(answer(pages))])).adapters
    loads = np.array([np.log(2), np.log(80)])
    assert found.shares == pytest.approx(dict(zip(("a", "hr"), loads / loads.sum(), strict=True)))


def test_one_server_is_not_the_fleet_of_the_base(loraplan: CommandLine) -> None:
    Path("base.yaml").write_text("extends: quickstart\nfleet: {replicas: 2}\n", encoding="utf-8")
    Path("m.txt").write_text(counted(100, 1.0), encoding="utf-8")
    loraplan.succeeds("observe", "--prometheus", "m.txt", "--window", "10 s", "--base", "base.yaml")
    written = Path("observed.yaml").read_text(encoding="utf-8")
    assert "The metrics are of 1 server; fleet.replicas of base.yaml is 2." in " ".join(
        written.replace("#", "").split()
    )
    pools = [{"name": name, "replicas": count} for name, count in (("a", 1), ("b", 2))]
    Path("my base.yaml").write_text(f"extends: quickstart\nfleet: {json.dumps({'pools': pools})}\n", encoding="utf-8")
    out = ("--base", "my base.yaml", "--out", "my own.yaml")
    ended = loraplan.succeeds("observe", "--prometheus", "m.txt", "--window", "10 s", *out)
    assert "The metrics are of 1 server; the pools of my base.yaml have 3 replicas." in " ".join(ended.err.split())
    assert "loraplan plan 'my own.yaml' --minimize" in ended.out


def test_prefix_hits_become_a_shared_text(loraplan: CommandLine) -> None:
    config = 'vllm:cache_config_info{block_size="16",num_gpu_blocks="4096",enable_prefix_caching="True"} 1\n'
    hits = "vllm:prefix_cache_queries_total 4000\nvllm:prefix_cache_hits_total 2000\n"
    Path("m.txt").write_text(counted(100, 1.0) + config + hits, encoding="utf-8")
    ended = loraplan.succeeds("observe", "--prometheus", "m.txt", "--window", "10 s", "--json")
    scenario = load_scenario("observed.yaml").scenario
    assert scenario.fleet.prefix_caching
    assert scenario.workload.prefix is not None
    assert "prefix_hits" in json.loads(ended.out)["metrics"]


def test_what_the_server_says_otherwise_than_its_command_line_is_named(loraplan: CommandLine) -> None:
    config = 'vllm:cache_config_info{block_size="16",num_gpu_blocks="4096",enable_prefix_caching="True"} 1\n'
    Path("m.txt").write_text(counted(100, 1.0) + config, encoding="utf-8")
    other = "vllm serve m --enable-lora --block-size 32 --max-loras 2 --enable-prefix-caching"
    ended = loraplan.succeeds("observe", "--prometheus", "m.txt", "--window", "10 s", "--from-vllm", other)
    assert load_scenario("observed.yaml").scenario.fleet.block_size == 32
    assert "The server reports fleet.block_size 16; this scenario has 32, from the command line." in ended.err
    assert "cache.gpu.slots" not in ended.err, "these metrics don't say"
    assert "fleet.prefix_caching" not in ended.err, "they agree"


def test_the_time_of_files_is_a_guess_that_is_named(loraplan: CommandLine) -> None:
    for name, at_s, requests in (("a.txt", START_S, 0), ("b.txt", START_S + 100, 200)):
        Path(name).write_text(counted(requests, 1.0), encoding="utf-8")
        os.utime(name, (at_s, at_s))
    ended = loraplan.succeeds("observe", "--prometheus", "a.txt", "--prometheus", "b.txt")
    assert "200 requests in 100 s" in ended.out.replace("1.67 min", "100 s")
    assert "by when the files were last changed; --window corrects it" in ended.out


@pytest.mark.parametrize(
    ("content", "arguments", "parts"),
    [  # files without counts are refused in tests/cli/refusals/measuring.yaml
        (counted(0, 1.0), ("--window", "1min"), ["no request ended in this time"]),
        (counted(5, 1.0), (), ["--window", "nothing says over what time"]),
        (counted(5, 1.0), ("--window", "soon"), ["--window", "soon"]),
        (counted(5, 1.0), ("--window", "999 ms"), ["--window", "got 999 ms, allowed: 1 s or more"]),
        (counted(5, 1.0), ("--base", "serve-tiny", "--gpu", "h100"), ["--gpu: the base scenario says"]),
        (counted(5, 1.0), ("--from-vllm", "vllm serve m", "--from-sglang", "x"), ["more than one command line"]),
    ],
)
def test_errors_name_what_is_wrong(
    loraplan: CommandLine, content: str, arguments: tuple[str, ...], parts: list[str]
) -> None:
    Path("m.txt").write_text(content, encoding="utf-8")
    said = loraplan.refused("observe", "--prometheus", "m.txt", *arguments)
    for part in parts:
        assert part in said
    assert not Path("observed.yaml").exists()


def test_what_is_not_there_or_no_choice(loraplan: CommandLine) -> None:
    Path("m.txt").write_text(counted(5, 1.0), encoding="utf-8")
    Path("q.json").write_text(answer({START_S: counted(5, 1.0)}), encoding="utf-8")
    assert "don't go together" in loraplan("observe", "--prometheus", "m.txt", "--prometheus", "q.json").err
    os.utime("m.txt", (START_S, START_S))
    shutil.copy2("m.txt", "n.txt")
    assert "the same time" in loraplan("observe", "--prometheus", "m.txt", "--prometheus", "n.txt").err
    Path("observed.yaml").write_text("mine", encoding="utf-8")
    assert loraplan("observe", "--prometheus", "m.txt", "--window", "5 s").code == 2
    assert Path("observed.yaml").read_text(encoding="utf-8") == "mine"


@contextmanager
def serving(pages: list[str], status: int = 200) -> Iterator[str]:
    """Give these pages one after the other at an address; the last one again and again."""
    left = list(pages)

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Keep quiet."""

        def do_GET(self) -> None:
            body = (left.pop(0) if len(left) > 1 else left[0]).encode()
            self.send_response(status if self.path == "/metrics" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_live_server_is_read_twice(loraplan: CommandLine) -> None:
    with serving([counted(10, 1.0), counted(14, 1.0)]) as url:
        ended = loraplan.succeeds("observe", "--prometheus", url, "--window", "1 s", "--base", "serve-tiny", "--json")
    assert json.loads(ended.out)["requests"] == 4
    assert "reading" in ended.err


def test_an_address_without_metrics_says_so(loraplan: CommandLine) -> None:
    with serving(["nothing"], 404) as url:
        assert f"{url}/metrics: status 404" in loraplan.refused("observe", "--prometheus", url)
    assert f"--prometheus: can't be read (got {url}" in loraplan.refused("observe", "--prometheus", url)


def test_rates_of_the_bases_tenants_add_up_to_the_measured_one(loraplan: CommandLine) -> None:
    """The measured rate contradicted theirs, and was left out: the simulation had three times the traffic."""
    tenants = (
        "[{name: a, adapters: 100, rate: 6/s}, {name: b, adapters: 60, rate: 3/s}, {name: c, adapters: 40, rate: 2/s}]"
    )
    base = (
        f"extends: quickstart\nname: base\nworkload: {{requests: 300, arrivals: {{rate: 11/s}}}}\ntenants: {tenants}\n"
    )
    Path("base.yaml").write_text(base, encoding="utf-8")
    Path("m.txt").write_text(counted(1000, 1.0), encoding="utf-8")
    ended = loraplan.succeeds("observe", "--prometheus", "m.txt", "--window", "10min", "--base", "base.yaml", "--json")
    scenario = load_scenario("observed.yaml").scenario
    assert scenario.workload.arrivals.rate == pytest.approx(1000 / 600, rel=1e-4)
    rates = [tenant.rate for tenant in scenario.tenants]
    assert rates == pytest.approx([1000 / 600 * part / 11 for part in (6, 3, 2)], rel=1e-4)
    assert "The tenants' rates of base.yaml are scaled to the measured total, 1.66667/s" in ended.err
    assert "left out" not in ended.err
