"""What comes out of the socket becomes stamps, however it is cut into pieces."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
from fake_server import FakeServer

from calibrate.loads.synthetic_adapters import SyntheticAdapter, write_adapter
from calibrate.serve import engine
from calibrate.serve.client import EventStream, PlannedRequest, refusal, send
from calibrate.serve.connection import Host, without_credentials
from calibrate.serve.drive import Driver
from calibrate.serve.engine import write_base
from calibrate.serve.http_answer import ServerError
from calibrate.serve.paired_table import ServePrediction, comparison
from calibrate.serve.serve_study import ServerMeasurement
from calibrate.serve.server_metrics import ObservedRun, observed_between, over_run, parse_page
from sim.errors import InputError
from sim.traffic.adapters import SHAPES, parameters_per_rank


def event(tokens: int) -> bytes:
    return f'data: {{"choices": [{{"text": "w"}}], "usage": {{"completion_tokens": {tokens}}}}}\n\n'.encode()


def stamps_of(pieces: list[tuple[float, bytes]]) -> tuple[list[tuple[float, int]], str]:
    stamps: list[tuple[float, int]] = []
    stream = EventStream(100, stamps)
    for now, data in pieces:
        stream.add(now, data)
    stream.end()
    return stamps, stream.problem


def test_events_in_pieces_and_several_in_one() -> None:
    whole = event(1) + event(2) + event(4) + b"data: [DONE]\n\n"
    cut = len(event(1)) + 5
    assert stamps_of([(1.0, whole[:cut]), (2.0, whole[cut:])]) == ([(1.0, 1), (2.0, 4)], "")


def test_an_error_in_the_stream() -> None:
    stamps, problem = stamps_of([(1.0, event(1)), (2.0, b'data: {"error": {"message": "out of memory"}}\n\n')])
    assert stamps == [(1.0, 1)]
    assert problem == "out of memory"
    assert stamps_of([(1.0, b"data: {torn\n\n")])[1] == "an event that is not JSON"
    assert stamps_of([(1.0, b'data: {"error": "out of memory"}\n\n')])[1] == "out of memory"
    assert stamps_of([(1.0, b'data: {"error": {"code": 5}}\n\n')])[1] == "{'code': 5}"
    assert stamps_of([(1.0, b"data: [1]\n\n")])[1] == "an event that is no JSON object"
    assert stamps_of([(1.0, b'data: {"error": null, "choices": [{"text": "w"}]}\n\n')]) == ([(1.0, 1)], "")


def test_refusals_in_words() -> None:
    assert refusal(404, b'{"error": {"message": "no such model"}}') == "HTTP 404: no such model"
    assert refusal(422, b'{"detail": "wrong"}') == "HTTP 422: wrong"
    assert refusal(502, b"Bad Gateway") == "HTTP 502: Bad Gateway"
    assert refusal(500, b"") == "HTTP 500"


def test_connections_are_kept(server: FakeServer) -> None:
    server.token_s = 0.05  # or a busy machine would get two tokens at once

    async def several() -> set[int]:
        host = Host(f"{server.url}/v1")
        ports = set()
        for index in range(3):
            sent = await send(host, PlannedRequest(index, 0.0, 0, 4, 3), "adapter-0")
            assert sent.status == "complete"
            assert len(sent.gaps()) == 2
            assert sent.sent < sent.first < sent.last
            ports.add(id(host._free[0]))
        await host.close()
        return ports

    assert len(asyncio.run(several())) == 1


def test_an_error_status(server: FakeServer) -> None:
    async def one() -> str:
        host = Host(server.url)
        sent = await send(host, PlannedRequest(0, 0.0, 0, 4, 3), "nobody")
        await host.close()
        return f"{sent.status} {sent.problem}"

    assert asyncio.run(one()) == "refused HTTP 404: The model `nobody` does not exist."


def test_a_stall_is_silence_not_a_long_answer(server: FakeServer) -> None:
    server.token_s = 0.03

    async def two(tokens: int) -> list[str]:
        driver = Driver(Host(server.url), server.adapters, stall_s=0.4)
        try:
            return [
                sent.status for sent in await driver.together([PlannedRequest(n, 0.0, n, 4, tokens) for n in (0, 1)])
            ]
        finally:
            await driver.host.close()

    assert asyncio.run(two(40)) == ["complete", "complete"]  # at least 1.2 s
    server.token_s = 2.0
    with pytest.raises(ServerError, match="the server stalled: no token came for"):
        asyncio.run(two(2))


def test_credentials_are_taken_off() -> None:
    assert Host("http://me:pa@ss@h:1/v1").url == "http://h:1"
    assert without_credentials("--url=https://me:key@h/x") == "--url=https://h/x"
    assert without_credentials("http://h/a@b") == "http://h/a@b"


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x", "http://", "http://h:port"])
def test_no_url(url: str) -> None:
    with pytest.raises(InputError, match="not the URL"):
        Host(url)


def test_metrics_pages() -> None:
    text = 'vllm:num_requests_running{a="1"} 2\nvllm:num_requests_running{a="2"} 3\nvllm:num_preemptions_total 7\n'
    first, last = parse_page(text, 1.0), parse_page(text.replace("total 7", "total 9"), 2.0)
    assert first.values["running"] == 5.0
    assert over_run([first, last]) == {"running_mean": 5.0, "running_max": 5.0, "preemptions": 2.0}
    assert over_run([first]) == {}
    assert parse_page("nothing {of use\n", 0.0).values == {}


@pytest.mark.parametrize(
    ("label", "reported", "fleet"),
    [
        (',enable_prefix_caching="False"', False, {"prefix_caching": False}),
        (',enable_prefix_caching="True"', True, {}),  # as the presets of vLLM have it
        ("", None, {}),
    ],
)
def test_a_server_without_prefix_caching_is_predicted_without(
    label: str, reported: bool | None, fleet: dict[str, bool]
) -> None:
    page = parse_page(f'vllm:cache_config_info{{block_size="16",num_gpu_blocks="9"{label}}} 1.0\n', 0.0)
    assert page.prefix_caching is reported
    assert ServerMeasurement("vLLM", "vllm-0.32", {"block_size": 16}, page.prefix_caching).fleet == {
        "block_size": 16,
        **fleet,
    }


def test_what_an_observer_saw() -> None:
    rows = [
        {"step": 1.0, "tokens": 9, "sequences": 2, "new": [3, 4, 4], "preempted": 0},
        {"load": 1.1, "adapter": 3, "seconds": 0.01},
        {"load": 1.2, "adapter": 7, "seconds": 0.01},
        {"eviction": 1.15, "adapter": 2},
        {"step": 2.0, "tokens": 2, "sequences": 2, "new": [], "preempted": 1},
        {"load": 9.0, "adapter": 3, "seconds": 0.01},
    ]
    assert observed_between(rows, 0.5, 3.0) == ObservedRun(loads=2, misses=1)
    assert "does not know" in str(observed_between([{"unable": "no module"}], 0, 1))
    assert "no step" in str(observed_between([], 0, 1))


def test_errors_and_noise() -> None:
    nothing = np.empty(0)
    table = comparison(
        [{"throughput_rps": 9.0}, {"throughput_rps": 11.0}],
        ServePrediction(nothing, nothing, {"throughput_rps": 11.0}, ()),
    )
    row = table["throughput_rps"]
    assert row["measured"] == 10.0
    assert row["error"] == pytest.approx(0.1)
    assert row["noise"] == pytest.approx(0.2)
    assert table["miss_ratio"]["error"] is None


def test_model_files_can_be_read(tmp_path) -> None:  # type: ignore[no-untyped-def]
    shape = SHAPES["tiny"]
    write_base(tmp_path / "base", shape, 1024)
    write_adapter(tmp_path / "a", SyntheticAdapter(shape, "base", 8, "all-linear", "bf16"), (3,))
    vocabulary = json.loads((tmp_path / "base" / "tokenizer.json").read_text())["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(1024))
    data = (tmp_path / "a" / "adapter_model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert header["base_model.model.model.layers.0.self_attn.k_proj.lora_B.weight"]["shape"] == [128, 8]
    assert len(data) - 8 - length == 2 * 8 * parameters_per_rank(shape, "all-linear")
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = safetensors.load_file(tmp_path / "a" / "adapter_model.safetensors")
    weights = tensors["base_model.model.model.layers.3.mlp.down_proj.lora_A.weight"].float()
    # Of either sign, and evenly spread over the two powers of 2 from 2^-7 on: mean square 7/6 (2^-14 + 2^-12).
    assert float(weights.std()) == pytest.approx((7 / 6 * (2**-14 + 2**-12)) ** 0.5, rel=0.05)
    assert bool((weights != 0).all())


def test_the_last_error_of_a_log(tmp_path) -> None:  # type: ignore[no-untyped-def]
    log = tmp_path / "log"
    log.write_text("starting\nValueError: too long\nbye\n")
    assert engine.last_error(log) == "ValueError: too long"
    log.write_text("")
    assert engine.last_error(log) == "its log is empty"
    assert engine.last_error(tmp_path / "none") == "it wrote no log"
