"""Tenants on the command line: the table, the files, the report, and --check for their objectives."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from command_line import CommandLine

SCENARIO = """\
schema_version: 1
name: shared
workload:
  requests: 3000
  arrivals: {process: poisson, rate: 5/s}
adapters: {count: 8, base_model: llama-3.1-8b}
fleet: {gpu: h100-80gb, price: 2.50}
cache: {gpu: {slots: 8}, host: {slots: 8}, warm: 8}
tenants:
  - {name: chat, adapters: 4, share: 50%, slo: {ttft_p50: 10 s}}
  - {name: batch, adapters: 4, share: 50%, slo: {ttft_p50: TARGET}}
run: {replications: 2}
"""


def test_a_run_shows_what_each_tenant_gets(loraplan: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "shared.yaml").write_text(SCENARIO.replace("TARGET", "10 s"))
    loraplan.succeeds("run", "shared.yaml", "--jobs", "1", "--check", "--out", "out")
    with (tmp_path / "out" / "tenants.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["tenant"] for row in rows} == {"chat", "batch"}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    tenants = summary["points"][0]["tenants"]
    assert [tenants[name]["slo"] for name in ("chat", "batch")] == ["met", "met"]


def test_check_fails_where_one_tenant_misses_its_own_slo(loraplan: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "shared.yaml").write_text(SCENARIO.replace("TARGET", "1 ms"))
    result = loraplan("run", "shared.yaml", "--all", "--jobs", "1", "--check", "--quiet")
    assert result.code == 1, result.err
    assert result.out.startswith("shared: The SLO of batch is not met: its median TTFT is ")
    assert "not met: median TTFT" in result.out
    (tmp_path / "shared.yaml").write_text(SCENARIO.replace("TARGET", "1 ms") + "slo: {ttft_p50: 10 s}\n")
    result = loraplan(
        "run", "shared.yaml", "--all", "--jobs", "1", "--check", "--quiet", "--no-headroom", "--overwrite"
    )
    assert result.code == 1, result.err
    assert result.out.startswith("shared: The SLO of batch is not met: "), "the fleet's is"


def test_a_sweep_says_that_one_tenant_misses_its_own_slo(loraplan: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "shared.yaml").write_text(SCENARIO.replace("TARGET", "1 ms") + "slo: {ttft_p50: 10 s}\n")
    result = loraplan(
        "sweep", "shared.yaml", "--all", "--jobs", "1", "--check", "--quiet", "--over", "fleet.replicas=1,2"
    )
    assert result.code == 1, result.err
    assert result.out.startswith("shared: The SLO is not met with 1 or 2 replicas.")
    assert "The SLO of batch is not met at 2 of 2 points." in result.out
    assert "The cheapest point that meets the SLO" not in result.out


def test_a_bucket_that_is_too_small_for_one_tenant_is_no_overload_of_another(
    loraplan: CommandLine, tmp_path: Path
) -> None:
    bucket = "bucket: {rate: 200/s, burst: 12288, full: queue}"
    text = SCENARIO.replace("TARGET", "1 s").replace("slo: {ttft_p50: 1 s}", bucket)
    (tmp_path / "shared.yaml").write_text(text)
    result = loraplan.succeeds("run", "shared.yaml", "--all", "--jobs", "1", "--quiet", "--no-headroom")
    table = result.out.splitlines()
    start = table.index("Tenants")
    assert [line.split()[:2] for line in table[start + 2 : start + 4]] == [["chat", "met"], ["batch", "–"]]
    assert "The bucket of batch admits 200 of" in result.out, "its queue grows, and that of the fleet doesn't"
