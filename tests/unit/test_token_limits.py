"""What is too much is refused where it stands: tokens beyond any model, and bytes whose sums would wrap around."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sim.errors import InputError
from sim.policies.replay.cache_replay import replay, replay_stepwise
from sim.policies.replay.lru_curve import lru_byte_curve
from sim.spec.scenario_file import load_scenario
from sim.spec.sections.laws import MAX_TOKENS
from sim.spec.sections.trace_source import Trace
from sim.traffic.lengths import together
from sim.traffic.traces import client_lengths
from sim.traffic.traces.read import read_trace
from sim.world.build import build_world

SCENARIO = """\
schema_version: 1
name: long
workload:
  requests: 50
  arrivals: {process: poisson, rate: 5/s}
  tokens:
    prompt: PROMPT
    output: OUTPUT
adapters: {count: 20}
cache: {gpu: {slots: 4}}
fleet: {kv_tokens: 100000000}
run: {replications: 1}
"""
SHORT = "{law: fixed, value: 5}"
BEYOND = f"{MAX_TOKENS + 1}"
LAWS = {
    "value": ("{law: fixed, value: N}", 5),
    "low": ("{law: uniform, low: N, high: N}", 5),
    "high": ("{law: uniform, low: 1, high: N}", 5),
    "mean": ("{law: geometric, mean: N}", 5),
    "max": ("{law: geometric, mean: 5, max: N}", 5),
    "p99": ("{law: lognormal, mean: 9000000, p99: N}", 9_500_000),
    "max ": ("{law: lognormal, mean: 5, p99: 9, max: N}", 9),
    "high ": ("{law: histogram, low: 1, high: N, shares: [1, 1]}", 9),
    "mean ": ("{law: histogram, low: 1, high: 9, shares: [1, 1], mean: N}", 5),
}
"""A law by the key that is too large, and a value at which it is fine."""


def build(folder: Path, prompt: str, output: str, *changes: str) -> object:
    (folder / "s.yaml").write_text(SCENARIO.replace("PROMPT", prompt).replace("OUTPUT", output))
    loaded = load_scenario(str(folder / "s.yaml"), list(changes))
    try:
        return build_world(loaded.scenario)
    except InputError as error:
        raise loaded.locate(error) from None


@pytest.mark.promise("tokens of a request: 10 million, prompt and answer together")
@pytest.mark.parametrize("huge", [BEYOND, "3000000000"])
@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("side", ["prompt", "output"])
def test_a_law_of_too_many_tokens_is_refused_where_it_stands(tmp_path: Path, side: str, name: str, huge: str) -> None:
    text = LAWS[name][0].replace("N", huge)
    prompt, output = (text, SHORT) if side == "prompt" else (SHORT, text)
    line = 7 if side == "prompt" else 8
    with pytest.raises(InputError) as error:
        build(tmp_path, prompt, output)
    assert f"s.yaml:{line}: workload.tokens.{side}.{name.strip()}: " in str(error.value)
    assert "allowed: at most 10,000,000)" in str(error.value)
    with pytest.raises(InputError) as error:
        build(tmp_path, SHORT, SHORT, f"workload.tokens.{side}={text}")
    assert f"--set: workload.tokens.{side}.{name.strip()}: " in str(error.value)


@pytest.mark.parametrize("name", LAWS)
def test_the_same_laws_with_fewer_tokens_are_fine(tmp_path: Path, name: str) -> None:
    text, value = LAWS[name]
    build(tmp_path, text.replace("N", str(value)), SHORT)


@pytest.mark.promise("tokens of a request: 10 million, prompt and answer together")
@pytest.mark.parametrize(
    ("prompt", "output"),
    [
        ("fixed, value: 6000000", "geometric, mean: 5000000"),
        ("uniform, low: 1, high: 9999999", "fixed, value: 2"),
        ("lognormal, mean: 5, p99: 9, max: 9000000", "fixed, value: 1000001"),
    ],
)
def test_prompt_and_output_are_limited_together(tmp_path: Path, prompt: str, output: str) -> None:
    with pytest.raises(InputError, match=r"s\.yaml:6: workload\.tokens: prompt and output together are too long"):
        build(tmp_path, f"{{law: {prompt}}}", f"{{law: {output}}}")


def test_the_longest_request_is_simulated(tmp_path: Path) -> None:
    build(tmp_path, f"{{law: fixed, value: {MAX_TOKENS - 5}}}", SHORT)
    with pytest.raises(InputError):
        build(tmp_path, f"{{law: fixed, value: {MAX_TOKENS - 4}}}", SHORT)


def test_stretched_histograms_are_limited_by_their_longest_request(tmp_path: Path) -> None:
    """Nearly all requests are short: a mean of 9 million would make the longest one 9e12 tokens long."""
    histogram = "{law: histogram, low: 1, high: 1000000, shares: [1, 1e-9], mean: 9000000}"
    with pytest.raises(InputError, match=r"s\.yaml:7: workload\.tokens\.prompt\.mean: the longest request would have"):
        build(tmp_path, histogram, SHORT)


def test_observed_counts_are_limited(tmp_path: Path) -> None:
    (tmp_path / "n.csv").write_text(f"n\n5\n{BEYOND}\n")
    law = "{law: empirical, column: n, file: n.csv}"
    with pytest.raises(InputError, match=r"n\.csv:3: not a token count \(got 10000001, allowed: .*1 to 10,000,000\)"):
        build(tmp_path, law, SHORT)
    (tmp_path / "n.csv").write_text(f"n\n5\n{MAX_TOKENS}\n")
    with pytest.raises(InputError, match="together are too long"):
        build(tmp_path, law, SHORT)


def test_draws_of_laws_without_an_end_are_cut(tmp_path: Path) -> None:
    world = build(tmp_path, "{law: lognormal, mean: 1500000, p99: 9999995}", SHORT, "workload.requests=20000")
    chunk = next(world.traffic.chunks(0))  # type: ignore[attr-defined]
    assert (chunk.prompt_tokens + chunk.output_tokens).max() <= MAX_TOKENS
    assert chunk.prompt_tokens.max() >= MAX_TOKENS - 5, "some draws are beyond the limit, or nothing is shown"


def test_what_fits_is_not_touched() -> None:
    prompt, output = np.array([1, 5, MAX_TOKENS - 3, MAX_TOKENS, 10**12]), np.array([1, 7, 3, 9, 10**12])
    cut = together(prompt, output)
    assert cut[0].tolist() == [1, 5, MAX_TOKENS - 3, MAX_TOKENS - 1, MAX_TOKENS - 1]
    assert cut[1].tolist() == [1, 7, 3, 1, 1]


HEAD = "timestamp_s,adapter_id,input_tokens,output_tokens\n"


@pytest.mark.promise("tokens of a request: 10 million, prompt and answer together")
@pytest.mark.parametrize(
    ("row", "said"),
    [
        (f"1,a,{BEYOND},5", r"t\.csv:3: input_tokens: not a token count \(got 10000001"),
        (f"1,a,5,{BEYOND}", r"t\.csv:3: output_tokens: not a token count \(got 10000001"),
        (
            "1,a,6000000,5000000",
            r"t\.csv:3: output_tokens: the request is too long \(got 5000000, allowed: up to 10,000",
        ),
        ("1,a,3000000000,1", r"t\.csv:3: input_tokens: not a token count"),
    ],
)
def test_rows_of_traces_are_limited(tmp_path: Path, row: str, said: str) -> None:
    (tmp_path / "t.csv").write_text(f"{HEAD}0,a,5,5\n{row}\n")
    with pytest.raises(InputError, match=said):
        read_trace(Trace(file=str(tmp_path / "t.csv")))
    left = read_trace(Trace(file=str(tmp_path / "t.csv"), skip_bad=True))
    assert left.prompt_tokens.tolist() == [5]


def test_the_longest_row_is_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"{HEAD}0,a,{MAX_TOKENS - 1},1\n")
    assert len(read_trace(Trace(file=str(tmp_path / "t.csv")))) == 1


def test_means_of_clients_are_limited(tmp_path: Path) -> None:
    head = ",".join(client_lengths.COLUMNS)
    file = str(tmp_path / "c.csv")
    for cells in (f"{BEYOND},1,1,1,1,1,1,1", f"1,1,1,1,1,1,1,{BEYOND}"):
        (tmp_path / "c.csv").write_text(f"{head}\na,{cells}\n")
        with pytest.raises(InputError, match=r"c\.csv:2: (in|out)put_tokens_(mean|p99): .*0 to 10,000,000"):
            client_lengths._load(file, skip_bad=False)
    longest = f"{MAX_TOKENS}," * 7 + f"{MAX_TOKENS}"
    (tmp_path / "c.csv").write_text(f"{head}\na,{longest}\n")
    prompt, output, _ = client_lengths.draw_lengths(file, np.zeros(1000, dtype=np.int32), ("a",), 1, skip_bad=False)
    assert (prompt.astype(np.int64) + output).max() <= MAX_TOKENS
    assert output.min() >= 1


def test_the_token_budget_of_a_step_has_the_same_limit() -> None:
    """Step costs are tabulated up to the budget, so a larger one would fill the memory."""
    assert load_scenario("quickstart", [f"fleet.max_num_batched_tokens={MAX_TOKENS}"])
    with pytest.raises(InputError, match=r"fleet\.max_num_batched_tokens: .*10,?000,?000"):
        load_scenario("quickstart", [f"fleet.max_num_batched_tokens={MAX_TOKENS + 1}"])


# Sums of bytes that do not fit into 64 bits are refused, not wrapped around


REQUESTS = 1024  # so that one more than LARGEST makes exactly 2**63
LARGEST = (2**63 - 1) // REQUESTS


@pytest.mark.parametrize(
    "count",
    [
        lambda objects, sizes: replay("lru", objects, sizes, 2**62),
        lambda objects, sizes: replay("lfu", objects, sizes, 2**62),
        lambda objects, sizes: replay_stepwise("belady", objects, sizes, 2**62),
        lambda objects, sizes: lru_byte_curve(objects, sizes, [2**62]),
    ],
)
def test_sizes_whose_sum_would_wrap_round_are_refused(count: Callable[..., object]) -> None:
    objects = np.zeros(REQUESTS, dtype=np.int32)
    count(objects, np.array([LARGEST]))
    with pytest.raises(InputError, match="too many to be counted") as refused:
        count(objects, np.array([LARGEST + 1]))
    assert refused.value.key == "adapter_bytes"
    assert refused.value.got == LARGEST + 1
    assert f"{LARGEST:,}" in str(refused.value.allowed)


def test_the_largest_sums_allowed_are_right() -> None:
    objects = np.zeros(REQUESTS, dtype=np.int32)
    for policy in ("lru", "lfu"):
        replayed = replay(policy, objects, np.array([LARGEST]), LARGEST - 1)
        assert replayed.missed_bytes == replayed.requested_bytes == REQUESTS * LARGEST
