"""Questions to ``loraplan plan`` that have no answer: refused before anything is simulated or written."""

from __future__ import annotations

from pathlib import Path

from command_line import CommandLine

FLEET = """\
schema_version: 1
name: fleet
workload:
  requests: 400
  arrivals: {{process: poisson}}
  tokens: {{prompt: {{law: fixed, value: 100}}, output: {{law: fixed, value: 20}}}}
adapters: {{count: 60, rank: 16}}
fleet: {{engine: continuous, profile: h100-64gb/llama-3.1-8b/assumed, replicas: 2, price: 2.50 USD/h}}
cache: {{gpu: {{slots: 24}}}}
slo: {{ttft_p99: 5 s}}
tenants:
  - {{name: chat, adapters: 40, rate: {chat}/s, slo: {{ttft_p99: 2 s}}}}
  - {{name: batch, adapters: 20, rate: {batch}/s, slo: {{ttft_p99: 5 s}}, price: {{input: 0.1, output: 0.4}}}}
"""


def write(folder: Path, chat: float = 6, batch: float = 4) -> str:
    path = folder / "fleet.yaml"
    path.write_text(FLEET.format(chat=chat, batch=batch), encoding="utf-8")
    return str(path)


def refused(loraplan: CommandLine, folder: Path, *arguments: str) -> str:
    said = loraplan.refused("plan", *arguments)
    assert not (folder / "runs").exists()
    return said


def test_a_tenant_with_too_few_requests_is_refused_with_the_length_it_needs(
    loraplan: CommandLine, tmp_path: Path
) -> None:
    name = write(tmp_path, 9.5, 0.5)
    said = refused(loraplan, tmp_path, name, "--minimize", "fleet.replicas=1..2")
    assert (
        "can't decide whether p99 TTFT of batch meets its target: its longest runs together have about 640 requests of "
        "batch, 1,000 are needed; simulate about 680 requests (--set workload.requests=680), or leave the term out"
    ) in said
    loraplan.succeeds("plan", name, "--minimize", "fleet.replicas=1..2", "--set", "workload.requests=680")


def test_a_tenant_is_called_by_its_name(loraplan: CommandLine, tmp_path: Path) -> None:
    """An answer read "Tenants.1.rate 6/s is enough"."""
    name = write(tmp_path)
    by_index = loraplan.succeeds("plan", name, "--maximize", "tenants.1.rate=4/s..6/s:2/s", "--out", "found")
    assert by_index.out.startswith("fleet: Arrival rate of batch 6/s")
    assert "tenants.1" not in by_index.out
    by_name = loraplan("plan", name, "--maximize", "tenants.batch.rate=4/s..6/s:2/s", "--out", "found")
    assert by_name.out == by_index.out
