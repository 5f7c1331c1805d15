"""Tenants: whose each request is, what each got, and the mistakes that a scenario may make with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import loraplan as api
from sim.results.catalogue import measured_of
from sim.results.point import Point
from sim.results.run_directory.result_files import points_csv, summary_json, tenants_csv
from sim.spec.scenario_file import load_scenario
from sim.studies.design import make_design
from sim.studies.evaluate import EvaluationOptions, evaluate, facts_of
from sim.studies.run.answer import answer
from sim.traffic.generate import Traffic
from sim.world.build import build_world

SCENARIO = """\
schema_version: 1
name: shared
workload:
  requests: 4000
  arrivals: {process: poisson, rate: 10/s}
  popularity: {law: zipf, exponent: 0.9}
adapters: {count: 30, base_model: llama-3.1-8b}
fleet: {gpu: h100-80gb}
cache: {gpu: {slots: 16}, host: {slots: 30}}
slo: {ttft_p99: 1 s}
run: {replications: 2}
"""
TENANTS = """\
tenants:
  - {name: noisy, adapters: 10, share: 60%, slo: {e2e_p99: 20 s}}
  - {name: quiet, adapters: 20, share: 40%, slo: {ttft_p99: 1 s}}
"""


def load(folder: Path, text: str, *overrides: str):
    file = folder / "shared.yaml"
    file.write_text(text, encoding="utf-8")
    return load_scenario(str(file), overrides).scenario


def point_of(folder: Path, text: str, *overrides: str) -> Point:
    return evaluate(make_design(load(folder, text, *overrides)), EvaluationOptions(draws=False)).point


def requests_of(traffic: Traffic, replication: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the arrival and the tenant of every request."""
    chunks = list(traffic.chunks(replication))
    adapter = np.concatenate([chunk.adapter for chunk in chunks])
    return np.concatenate([chunk.arrival_s for chunk in chunks]), traffic.tenant_of[adapter]


def test_keys_and_slots_without_effect_are_told() -> None:
    half = {"adapters": 100, "share": 0.5}
    tenants = [{"name": "a", **half, "priority": 2, "weight": 3}, {"name": "b", **half}]
    values = {"tenants": tenants, "cache.gpu.slots": 240, "cache.host.slots": 240}
    notes = build_world(api.load_scenario("quickstart", values).scenario).notes
    for said in ("].priority has no effect", "].weight has no effect", "40 of 240 GPU slots will stay empty"):
        assert sum(said in note for note in notes) == 1
    fair = {"tenants": tenants, "fleet.scheduling": "vtc", "fleet.engine": "continuous"}
    notes = build_world(api.load_scenario("quickstart", fair).scenario).notes
    assert not any("weight has no effect" in note for note in notes)
    assert not any("stay empty" in note for note in notes)
    one = build_world(api.load_scenario("quickstart", {"adapters.count": 1}).scenario).notes
    assert any("stay empty, for there is 1 adapter; empty slots take" in note for note in one)


def test_shares_divide_the_requests_and_popularity_applies_within_each(tmp_path: Path) -> None:
    traffic = Traffic(load(tmp_path, SCENARIO + TENANTS, "workload.requests=40000"), "llama-3.1-8b")
    _, tenant = requests_of(traffic)
    noisy = float(np.mean(tenant == 0))
    assert abs(noisy - 0.6) < 4 * np.sqrt(0.6 * 0.4 / 40000), "four standard errors of a binomial share"
    shares = traffic.shares()
    assert shares[:10].sum() == pytest.approx(0.6)
    assert shares[10:].sum() == pytest.approx(0.4)
    assert shares[0] / shares[1] == pytest.approx(2**0.9)
    assert shares[10] / shares[11] == pytest.approx(2**0.9)


def test_a_tenant_with_steps_keeps_its_mean_and_bursts(tmp_path: Path) -> None:
    steps = "share: 60%, steps: [{time: 50 s, level: 1}, {time: 10 s, level: 10}]"
    traffic = Traffic(
        load(tmp_path, SCENARIO + TENANTS.replace("share: 60%", steps), "workload.requests=40000"), "llama-3.1-8b"
    )
    arrival, tenant = requests_of(traffic)
    assert (np.diff(arrival) >= 0).all()
    for place, mean in ((0, 6.0), (1, 4.0)):
        count = np.count_nonzero(tenant == place)
        expected = mean * arrival[-1]
        assert abs(count - expected) < 5 * np.sqrt(expected), "five standard deviations of a Poisson count"
    inside = arrival[tenant == 0] % 60 >= 50
    assert abs(np.mean(inside) - 100 / 150) < 0.02, "10 s at level 10 of 60 s that weigh 150"
    assert abs(np.mean(arrival[tenant == 1] % 60 >= 50) - 1 / 6) < 0.02, "the other tenant doesn't burst"


def test_a_tenants_requests_do_not_depend_on_the_other_tenants(tmp_path: Path) -> None:
    """Common random numbers: with arrivals of their own, a tenant's requests stay when another one changes."""
    texts = [
        TENANTS.replace("share: 60%", "share: 60%, cv: 1"),
        TENANTS.replace("share: 60%", "share: 60%, steps: [{time: 5 s, level: 1}, {time: 5 s, level: 9}]"),
    ]
    quiet = []
    for text in texts:
        arrival, tenant = requests_of(Traffic(load(tmp_path, SCENARIO + text), "llama-3.1-8b"))
        quiet.append(arrival[tenant == 1])
    count = min(map(len, quiet))
    assert count > 1000
    np.testing.assert_array_equal(quiet[0][:count], quiet[1][:count])


def test_tenants_without_shares_leave_the_run_as_it_is(tmp_path: Path) -> None:
    """They only say whose requests are whose: the tables of the fleet stay the same to the byte."""
    plain = point_of(tmp_path, SCENARIO)
    text = "tenants: [{name: noisy, adapters: 10}, {name: quiet, adapters: 20}]\n"
    shared = point_of(tmp_path, SCENARIO + text)
    assert points_csv([plain]) == points_csv([shared])
    assert not plain.tenants
    assert len(shared.tenants) == 2
    assert "tenants" not in plain.to_json()
    assert not tenants_csv([plain])


def test_one_tenant_has_the_metrics_of_the_fleet(tmp_path: Path) -> None:
    point = point_of(tmp_path, SCENARIO + "tenants: [{name: all, adapters: 30, slo: {ttft_p99: 1 s, tpot_p95: 1 s}}]\n")
    (tenant,) = point.tenants
    assert tenant.metrics == {name: point.metrics[name] for name in measured_of("tenant") if name in point.metrics}
    assert "tpot_p95_s" in tenant.metrics
    assert "tpot_p90_s" not in tenant.metrics
    assert tenant.late == point.late
    assert tenant.token_share == 1


def test_each_request_is_judged_by_the_targets_of_its_tenant(tmp_path: Path) -> None:
    alone = SCENARIO.replace("slo: {ttft_p99: 1 s}\n", "")
    point = point_of(tmp_path, alone + TENANTS.replace("e2e_p99: 20 s", "e2e_p99: 3 s").replace("1 s}", "60 ms}"))
    goodputs = [tenant.metrics["goodput_rps"].value for tenant in point.tenants]
    assert point.metrics["goodput_rps"].value == pytest.approx(sum(goodputs), rel=1e-12)
    assert 0 < point.metrics["slo_attainment"].value < 1


def test_tenants_with_the_target_of_the_fleet_have_its_late_requests(tmp_path: Path) -> None:
    text = SCENARIO.replace("gpu: h100-80gb", "gpu: h100-80gb, replicas: 2").replace("slo: {ttft_p99: 1 s}\n", "")
    text += "faults: [{kind: crash, replica: 1, at: 2 min, down: 1 min, detected: 5 s}]\n"
    slo = "slo: {ttft_p99: 100 ms}"
    fleet = point_of(tmp_path, f"{text}{slo}\n")
    tenants = point_of(
        tmp_path, f"{text}tenants: [{{name: a, adapters: 10, {slo}}}, {{name: b, adapters: 20, {slo}}}]\n"
    )
    assert "late ones aren't counted" in answer(point_of(tmp_path, text), {}).headline
    assert fleet.metrics["harmed"].value > 0
    for name in ("harmed", "slo_attainment", "goodput_rps"):
        assert tenants.metrics[name] == fleet.metrics[name]


def test_files_have_every_tenant(tmp_path: Path) -> None:
    point = point_of(tmp_path, SCENARIO + TENANTS)
    again = Point.from_json(point.to_json())
    assert again.tenants == point.tenants
    rows = [line.split(",") for line in tenants_csv([point]).splitlines()]
    assert rows[0] == ["tenant", "metric", "value", "lo", "hi", "unit", "target", "verdict"]
    assert {row[0] for row in rows[1:]} == {"noisy", "quiet"}
    judged = {(row[0], row[1]): row[7] for row in rows[1:] if row[6]}
    assert set(judged) == {("noisy", "e2e_p99_s"), ("quiet", "ttft_p99_s")}
    tenants = summary_json("shared", [point])["points"][0]["tenants"]
    assert tenants["quiet"]["slo"] == judged["quiet", "ttft_p99_s"]


def test_a_trace_names_tenants_by_pattern(tmp_path: Path) -> None:
    rows = [f"{place * 0.1:.1f},{('acme-a', 'acme-b', 'zeta')[place % 3]},100,20" for place in range(300)]
    (tmp_path / "t.csv").write_text("timestamp_s,adapter_id,prompt_tokens,output_tokens\n" + "\n".join(rows) + "\n")
    base = """\
schema_version: 1
name: traced
workload: {trace: {file: t.csv}}
adapters: {base_model: llama-3.1-8b}
fleet: {gpu: h100-80gb}
"""
    text = base + "tenants: [{name: acme, match: ['acme-*']}, {name: zeta, match: [zeta]}]\n"
    world = build_world(load(tmp_path, text))
    facts = facts_of(world)
    names = dict(zip(world.traffic.names, facts.tenant_of.tolist(), strict=False))
    assert names == {"acme-a": 0, "acme-b": 0, "zeta": 1}
    narrowed = base + "tenants: [{name: acme, match: ['acme-*']}, {name: all, match: ['[!a]*']}]\n"
    assert build_world(load(tmp_path, narrowed)).traffic.names, "as the hint says for patterns that overlap"


def test_a_tenant_can_be_set_by_name(tmp_path: Path) -> None:
    tenants = "[{name: chat, adapters: 40, slo: {ttft_p99: 1 s}}, {name: 1, adapters: 20}]".replace(
        "name: 1", "name: '1'"
    )
    path = tmp_path / "base.yaml"
    path.write_text(f"extends: quickstart\nname: base\nadapters: {{count: 60}}\ntenants: {tenants}\n", encoding="utf-8")
    chat, other = load_scenario(str(path), ["tenants.chat.weight=2", "tenants.chat.slo.ttft_p99=3 s"]).scenario.tenants
    assert (chat.weight, chat.slo.ttft_p99, other.weight) == (2, 3, 1)
    assert [each.weight for each in load_scenario(str(path), ["tenants.1.weight=3"]).scenario.tenants] == [1, 3]
