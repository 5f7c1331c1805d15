"""``loraplan fidelity --record``: what it prints, and what is said about a file that is no record."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine

CONFIG = {
    "slots": 1,
    "host_slots": 2,
    "adapters": 2,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 64,
    "block_size": 16,
    "kv_blocks": 9,
}


def step(at_s: float, scheduled: dict[str, int], adapter: int, *loads: int) -> dict[str, Any]:
    return {
        "at_s": at_s,
        "scheduled": scheduled,
        "preempted": [],
        "adapters": [adapter],
        "loads": [[load, 0.001] for load in loads],
        "evictions": [],
    }


TURNS: dict[str, Any] = {
    "engine": "vllm 0.32.0 (cpu)",
    "mode": "offline",
    "config": CONFIG | {"block_size": 4, "prefix_caching": True, "base_share": 0.5, "texts": 1, "sessions": 1},
    "requests": [
        {"id": 0, "adapter": 1, "prompt_tokens": 5, "output_tokens": 4, "arrival_s": 0.0}
        | {"prefix": [0, 4], "tail_tokens": 1, "session": 0, "turn": 0, "after": None},
        {"id": 1, "adapter": None, "prompt_tokens": 6, "output_tokens": 1, "arrival_s": 0.0}
        | {"prefix": [0, 4], "tail_tokens": 2},
        {"id": 2, "adapter": 1, "prompt_tokens": 11, "output_tokens": 1, "arrival_s": 0.3}
        | {"prefix": [0, 4], "tail_tokens": 2, "session": 0, "turn": 1, "after": 0},
    ],
    # The base model finds nothing of the adapter's. The second turn finds eight of the nine tokens of the first.
    "steps": [
        step(0.0, {"0": 5, "1": 6}, 1, 1) | {"cached": {"0": 0, "1": 0}, "overwritten": 0},
        step(0.1, {"0": 1}, 1) | {"cached": {}, "overwritten": 0},
        step(0.2, {"0": 1}, 1) | {"cached": {}, "overwritten": 0},
        step(0.3, {"0": 1}, 1) | {"cached": {}, "overwritten": 0},
        step(0.4, {"2": 3}, 1) | {"cached": {"2": 8}, "overwritten": 0},
    ],
}

# Two requests for the same adapter, of 5 + 3 and 4 + 2 tokens; the second comes in the second step.
RECORD: dict[str, Any] = {
    "engine": "vllm 0.32.0 (cpu)",
    "mode": "online",
    "config": CONFIG,
    "requests": [
        {"id": 0, "adapter": 1, "prompt_tokens": 5, "output_tokens": 3, "arrival_s": 0.0, "finished_s": 0.046},
        {"id": 1, "adapter": 1, "prompt_tokens": 4, "output_tokens": 2, "arrival_s": 0.02, "finished_s": 0.046},
    ],
    "steps": [
        step(0.0, {"0": 5}, 1, 1),
        step(0.015, {"0": 1}, 1),
        step(0.025, {"0": 1, "1": 4}, 1),
        step(0.038, {"1": 1}, 1),
    ],
}


def changed(path: str, value: Any, record: dict[str, Any] = RECORD) -> dict[str, Any]:
    """Return a record with the value at a dotted path replaced, or taken out where it is None."""
    record = copy.deepcopy(record)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place: Any = record
    for part in parents:
        place = place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return record


def write(record: dict[str, Any], name: str = "r.json.gz") -> str:
    Path(name).write_bytes(gzip.compress(json.dumps(record).encode()))
    return name


@pytest.mark.parametrize(
    ("record", "equal_steps", "first"),
    [
        (RECORD, 4, None),
        (changed("steps.2.scheduled", {"0": 1, "1": 3}), 3, "step 2 (at 0.025 s): tokens by request: "),
        (changed("steps.0.loads", []), 3, "step 0 (at 0.000 s): loads: replay [1], record []"),
        (TURNS, 5, None),
        (changed("steps.4.cached", {"2": 4}, TURNS), 4, "step 4 (at 0.400 s): cached tokens by request: replay {2: 8}"),
        (changed("steps.1.overwritten", 1, TURNS), 4, "step 1 (at 0.100 s): blocks overwritten: replay 0, record 1"),
    ],
)
def test_the_first_step_that_differs_is_told_and_is_no_failure(
    loraplan: CommandLine, record: dict[str, Any], equal_steps: int, first: str | None
) -> None:
    """What a terminal shows of such records stands in tools/same."""
    found = loraplan.data("fidelity", "--record", write(record))
    assert (found["steps"], found["equal_steps"]) == (len(record["steps"]), equal_steps)
    assert found["first_difference"] == first or found["first_difference"].startswith(first)


def test_an_offline_record_may_be_plain_json(loraplan: CommandLine) -> None:
    Path("r.json").write_text(json.dumps(changed("mode", "offline")))
    ended = loraplan.succeeds("fidelity", "--record", "r.json")
    assert "every step is met" in ended.out
    assert "within one step" not in ended.out


def test_costs_of_one_record_predict_another(loraplan: CommandLine) -> None:
    arguments = "fidelity", "--record", write(RECORD), "--fit-on", write(RECORD, "other.json.gz")
    ended = loraplan.succeeds(*arguments)
    assert "Predicted with costs from other.json.gz" in ended.out
    assert "p99 TTFT" in ended.out
    metrics = loraplan.data(*arguments, "--quiet")["prediction"]["metrics"]
    # By hand: first tokens at 15 and 38 ms after arrivals at 0 and 20 ms.
    assert metrics["ttft_p50_s"]["measured"] == pytest.approx((0.015 + 0.018) / 2)
    assert metrics["e2e_p50_s"]["measured"] == pytest.approx((0.046 + 0.026) / 2)
    assert metrics["loads"] == {"measured": 1, "predicted": 1, "error": 0}
    assert metrics["e2e_p50_s"]["error"] == pytest.approx(0, abs=0.2)


def test_costs_of_the_record_itself_are_noted(loraplan: CommandLine) -> None:
    name = write(RECORD)
    ended = loraplan("fidelity", "--record", name, "--fit-on", name)
    assert "costs fitted to the record that they predict say little" in ended.err


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (
            changed("engine", "vllm 0.7.3"),
            "r.json.gz: engine: the rules of this engine version are not known (got vllm 0.7.3, allowed: vllm 0.8.3 to "
            "0.9.1, 0.9.2 to 0.13, 0.14 to 0.17, 0.18, 0.19 to 0.22, 0.23 to 0.30, 0.31 and 0.32, 0.33)",
        ),
        (changed("engine", "vllm"), "r.json.gz: engine: the rules of this engine version are not known (got vllm, "),
        (changed("engine", None), "r.json.gz: engine: "),
        (changed("config.slots", 0), "r.json.gz: config.slots: "),
        (changed("config.slots", None), "r.json.gz: config.slots: "),
        (changed("steps", []), "r.json.gz: record: a record needs requests and steps"),
        (changed("requests.1.adapter", 7), "r.json.gz: record: a request names an adapter beyond config.adapters (2)"),
        (changed("steps.1.scheduled", {"9": 1}), "step 1 schedules a request that the record doesn't have"),
        (changed("steps.1.at_s", "soon"), "r.json.gz: steps.1.at_s: "),
        (changed("steps.1.at_s", 9.0), "r.json.gz: record: steps must be in the order of their times"),
        (changed("steps.0.adapters", [7]), "step 0 names an adapter beyond config.adapters (2)"),
        (
            changed("config.slots", 2) | {"config": {**CONFIG, "slots": 2, "host_slots": 1}},
            "config.host_slots (1) must be at least config.slots (2)",
        ),
        (changed("config.adapters", 10**12), "r.json.gz: config.adapters: "),
        (changed("requests.1.finished_s", 0.01), "request 1 ends before it arrives"),
        (changed("requests.0.prefix", [0, 9], TURNS), "request 0: prefix is longer than prompt_tokens (5)"),
        (changed("requests.0.prefix", [1, 4], TURNS), "request 0 names a text beyond config.texts (1)"),
        (changed("requests.0.session", 1, TURNS), "request 0 names a session beyond config.sessions (1)"),
        (changed("requests.2.after", 1, TURNS), "request 2: after (1) must be an earlier request of the same session"),
        (changed("requests.2.after", 7, TURNS), "request 2: after (7) must be an earlier request of the same session"),
        (changed("requests.2.prompt_tokens", 8, TURNS), "prompt_tokens must include request 0 and its answer"),
        (changed("steps.4.cached", {"9": 8}, TURNS), "step 4 schedules a request that the record doesn't have"),
    ],
)
def test_what_is_wrong_with_a_record_is_one_line(loraplan: CommandLine, record: dict[str, Any], says: str) -> None:
    ended = loraplan("fidelity", "--record", write(record))
    assert ended.code == 2
    assert says in ended.err
    assert len(ended.err.splitlines()) == 1
    assert ended.out == ""


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (gzip.compress(json.dumps(RECORD).encode())[:-40], "the gzip file is damaged or cut short"),
        (b"\x1f\x8bnonsense", "the gzip file is damaged or cut short"),
        (b"timestamp_s,adapter_id\n", "the record is not JSON"),
        (b"", "the record is not JSON"),
        (b"\xff\xfe\x00", "the record is not JSON"),
        (b"[1, 2]", "r.json.gz: record: "),
    ],
)
def test_a_file_that_is_no_record_is_one_line(loraplan: CommandLine, content: bytes, says: str) -> None:
    Path("r.json.gz").write_bytes(content)
    said = loraplan.refused("fidelity", "--record", "r.json.gz")
    assert said.startswith("error: r.json.gz: ")
    assert says in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), ": there is nothing to compare with (allowed: "),
        (("runs.csv", "--record", "r.json.gz"), "--record: give either measured runs or a record, not both (got r"),
        (("--record", "nowhere.json.gz"), "nowhere.json.gz: can't read the record (got No such file or directory)"),
        (("--record", "."), "can't read the record"),
        (("--fit-on", "r.json.gz"), "--record: --fit-on needs a record to predict; give --record FILE"),
        (("--record", "r.json.gz", "--out", "o"), "--out: goes with tables of served hours (got o"),
        (("--record", "r.json.gz", "--fit-on", "nowhere"), "nowhere: can't read the record"),
        (
            ("--record", "r.json.gz", "--fit-on", "off.json.gz"),
            "off.json.gz: mode: only records in real time have arrivals to predict (got offline, allowed: online)",
        ),
        (("--record", "off.json.gz", "--fit-on", "r.json.gz"), "off.json.gz: mode: only records in real time"),
        (("--record", "r.json.gz", "--fit-on", "cut.json.gz"), "cut.json.gz: requests.1.finished_s: a request never"),
        (("--record", "base.json.gz", "--fit-on", "r.json.gz"), "--record: predicting a record with prefix caching or"),
        (("--record", "r.json.gz", "--fit-on", "idle.json.gz"), "idle.json.gz: steps: the record has no loads"),
    ],
)
def test_what_can_not_be_compared_is_one_line(loraplan: CommandLine, arguments: tuple[str, ...], says: str) -> None:
    write(RECORD)
    write(changed("mode", "offline"), "off.json.gz")
    write(changed("requests.1.finished_s", None), "cut.json.gz")
    write(changed("steps.0.loads", []), "idle.json.gz")
    base = copy.deepcopy(RECORD)
    base["requests"][1]["adapter"] = None
    write(base, "base.json.gz")
    said = loraplan.refused("fidelity", *arguments)
    assert says in said
    assert len(said.splitlines()) == 1
