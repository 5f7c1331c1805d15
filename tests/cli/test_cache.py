"""``loraplan cache``: what it prints and writes, and what is said about input that can't be used."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from command_line import CommandLine

SIZES = {"a": 40_000_000, "b": 10_000_000, "c": 10_000_000}
FIELDS = ["policy", "capacity_bytes", "requests", "misses", "miss_ratio", "byte_miss_ratio"]


def write_trace(rows: str, sizes: dict[str, int] | None = None, name: str = "small.csv") -> str:
    """Write a trace that asks for these adapters, a letter each."""
    head = "timestamp_s,adapter_id,input_tokens,output_tokens" + (",adapter_bytes" if sizes else "")
    lines = [f"{i},{who},10,10" + (f",{sizes[who]}" if sizes else "") for i, who in enumerate(rows)]
    Path(name).write_text("\n".join([head, *lines, ""]), encoding="utf-8")
    return name


def test_json_has_one_entry_a_policy_and_capacity(loraplan: CommandLine) -> None:
    trace = write_trace("abcabc", SIZES)
    found = loraplan.data("cache", trace, "--policy", "lru,fifo", "--capacity", "50MB,20 MB")
    assert [list(entry) for entry in found] == [FIELDS] * 4
    assert [(entry["policy"], entry["capacity_bytes"]) for entry in found] == [
        ("lru", 20_000_000),
        ("lru", 50_000_000),
        ("fifo", 20_000_000),
        ("fifo", 50_000_000),
    ]
    # 20 MB never hold a (40 MB), and keep b and c: 4 misses, of 2 x 40 + 10 + 10 MB.
    assert (found[0]["requests"], found[0]["misses"]) == (6, 4)
    assert found[0]["miss_ratio"] == pytest.approx(4 / 6)
    assert found[0]["byte_miss_ratio"] == pytest.approx(100 / 120)
    # 50 MB: a b, c for a, a for b and c, ...: nothing is there when it is asked for, but c.
    assert found[1]["misses"] == 6


def test_json_alone_writes_nothing(loraplan: CommandLine, tmp_path: Path) -> None:
    loraplan.data("cache", write_trace("abca"), "--slots", "2")
    assert [path.name for path in tmp_path.iterdir()] == ["small.csv"]


@pytest.mark.parametrize(("text", "size"), [("1GB", 10**9), ("1GiB", 2**30), ("0.5 GB", 5 * 10**8)])
def test_units_are_decimal_unless_they_say_otherwise(loraplan: CommandLine, text: str, size: int) -> None:
    found = loraplan.data("cache", write_trace("abca", SIZES), "--policy", "lru", "--capacity", text)
    assert [entry["capacity_bytes"] for entry in found] == [size]


def test_slots_hold_an_adapter_each_whatever_its_size(loraplan: CommandLine) -> None:
    found = loraplan.data("cache", write_trace("abcabc", SIZES), "--policy", "lru", "--slots", "2,3")
    assert [(entry["slots"], entry["misses"]) for entry in found] == [(2, 6), (3, 3)]
    # Slots are as large as the largest adapter; which bytes missed isn't known where sizes differ.
    assert [(entry["capacity_bytes"], entry["byte_miss_ratio"]) for entry in found] == [
        (80_000_000, None),
        (120_000_000, None),
    ]
    (entry,) = loraplan.data("cache", write_trace("abab"), "--policy", "lru", "--slots", "1", "--adapter-size", "5MB")
    assert (entry["capacity_bytes"], entry["byte_miss_ratio"]) == (5_000_000, 1.0)


def test_a_size_of_all_adapters_makes_bytes_of_a_trace_without(loraplan: CommandLine) -> None:
    trace = write_trace("abcabc")
    found = loraplan.data("cache", trace, "--policy", "lru", "--capacity", "25MB,30MB", "--adapter-size", "10MB")
    assert [entry["misses"] for entry in found] == [6, 3]


def test_defaults_are_four_policies_at_a_spread_of_sizes(loraplan: CommandLine) -> None:
    with_sizes = loraplan.data("cache", write_trace("abcdefgh" * 3), "--adapter-size", "10MB")
    assert list(dict.fromkeys(entry["policy"] for entry in with_sizes)) == ["lru", "sieve", "lfu", "belady"]
    capacities = list(dict.fromkeys(entry["capacity_bytes"] for entry in with_sizes))
    assert capacities == sorted(capacities)
    assert len(capacities) > 1
    ended = loraplan("cache", "small.csv", "--json")
    assert "sizes count slots" in ended.err
    assert list(dict.fromkeys(entry["slots"] for entry in json.loads(ended.out))) == [1, 2, 4]


def test_one_adapter_and_one_request_are_a_trace(loraplan: CommandLine) -> None:
    loraplan.succeeds("cache", write_trace("a"), "--adapter-size", "10MB")
    loraplan.succeeds("cache", write_trace("a"))


def test_files_hold_what_is_printed(loraplan: CommandLine) -> None:
    trace = write_trace("abcabdabeabf" * 20, {**SIZES, "d": 5_000_000, "e": 7_000_000, "f": 10**7})
    loraplan.succeeds("cache", trace, "--policy", "lru,belady", "--capacity", "55MB,70MB")
    folder = Path("runs/cache-small")
    with (folder / "cache.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    found = loraplan.data("cache", trace, "--policy", "lru,belady", "--capacity", "55MB,70MB")
    assert [(row["policy"], int(row["capacity_bytes"]), int(row["misses"])) for row in rows] == [
        (entry["policy"], entry["capacity_bytes"], entry["misses"]) for entry in found
    ]
    with (folder / "lru_curve.csv").open(encoding="utf-8") as lines:
        curve = {int(row["capacity_bytes"]): float(row["lru"]) for row in csv.DictReader(lines)}
    for entry in found[:2]:
        assert curve[entry["capacity_bytes"]] == pytest.approx(entry["miss_ratio"])


def test_rows_left_out_are_counted(loraplan: CommandLine) -> None:
    Path("gaps.csv").write_text("timestamp_s,adapter_id\n0,a\nsoon,b\n2,b\n3,a\n", encoding="utf-8")
    assert "gaps.csv:3: timestamp_s" in loraplan.refused("cache", "gaps.csv", "--slots", "2")
    ended = loraplan.succeeds("cache", "gaps.csv", "--slots", "2", "--policy", "lru", "--skip-bad", "--json")
    assert json.loads(ended.out)[0]["requests"] == 3
    assert ended.err.count("left out") == 1
