"""``loraplan compare``: pairs, words, exit codes and files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from command_line import CommandLine

from sim.results.catalogue import UNITS
from sim.spec.scenario_file import load_scenario
from sim.studies.backends.pool import Local
from sim.studies.compare.study import changed_settings
from sim.studies.execution import Execution
from sim.studies.sweep import run_study


def simulate(out: Path, *settings: str, over: dict[str, list[object]] | None = None, seed: int | None = None) -> Path:
    loaded = load_scenario("cache-thrash", ["workload.requests=8000", *settings], seed)
    key, values = next(iter((over or {}).items()), ("", []))
    sets = [{key: value} for value in values] or [{}]
    return run_study(loaded, sets, out, Execution(Local(1), "loraplan run")).path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    simulate(root / "small", "cache.gpu.slots=200")
    simulate(root / "large", "cache.gpu.slots=400")
    simulate(root / "luck", "cache.gpu.slots=200", seed=7)
    simulate(root / "swept", over={"cache.gpu.slots": [100, 200, 400]})
    simulate(root / "fifo", "cache.eviction=fifo", over={"cache.gpu.slots": [200, 400, 800]})
    simulate(root / "rates", over={"workload.arrivals.rate": ["20/s", "26/s"]})
    simulate(root / "aimless", "slo=null")
    return root


def compared(loraplan: CommandLine, one: Path, other: Path, *options: str) -> dict[str, object]:
    ended = loraplan.succeeds("compare", str(one), str(other), "--json", *options)
    found: dict[str, object] = json.loads(ended.out)
    return found


def test_more_slots_are_better_and_fewer_worse(loraplan: CommandLine, runs: Path, tmp_path: Path) -> None:
    ended = loraplan.succeeds("compare", str(runs / "small"), str(runs / "large"), "--all")
    assert "Better with 400 GPU slots instead of 200: p99 E2E" in ended.out
    assert re.search(r"cache\.gpu\.slots +200 +400", ended.out)
    assert re.search(r"p99 E2E, SLO 400 ms .* clearly better", ended.out)
    assert "A and B met the same requests at the same times" in ended.out
    assert ended.err == ""
    page = tmp_path / "runs/compare-small-large/report.html"
    assert str(page.relative_to(tmp_path)) in ended.out
    assert "Better with 400 GPU slots instead of 200" in page.read_text(encoding="utf-8")
    assert (
        loraplan("compare", str(runs / "large"), str(runs / "small")).out.count(
            "Worse with 200 GPU slots instead of 400"
        )
        == 1
    )


def test_json_has_every_metric_and_stable_keys(loraplan: CommandLine, runs: Path, tmp_path: Path) -> None:
    data = compared(loraplan, runs / "small", runs / "large")
    assert list(data) == [
        "schema_version",
        "one",
        "other",
        "answer",
        "headline",
        "details",
        "slo",
        "judged",
        "worse_slo_terms",
        "differs",
        "cautions",
        "points",
        "without_partner",
    ]
    assert data["answer"] == "clearly better"
    assert data["differs"] == [{"key": "cache.gpu.slots", "one": "200", "other": "400"}]
    (point,) = data["points"]  # type: ignore[misc]
    assert point["traffic"] == "same requests"
    assert set(point["metrics"]) <= set(UNITS)
    missed = point["metrics"]["miss_ratio"]
    assert list(missed) == ["one", "other", "change", "lo", "hi", "relative", "unit", "word", "paired", "note"]
    assert missed["lo"] < missed["change"] < missed["hi"] < 0
    one = json.loads((runs / "small/summary.json").read_text())["points"][0]["metrics"]["miss_ratio"]["value"]
    assert (missed["one"], missed["word"], missed["paired"]) == (one, "clearly better", True)
    assert not (tmp_path / "runs").exists(), "no page with --json"


def test_check_fails_only_where_an_slo_term_is_clearly_worse(loraplan: CommandLine, runs: Path) -> None:
    small, large = str(runs / "small"), str(runs / "large")
    loraplan.succeeds("compare", small, large, "--check", "--json")
    loraplan.succeeds("compare", small, small, "--check", "--json")
    worse = loraplan("compare", large, small, "--check", "--json")
    assert worse.code == 1
    assert json.loads(worse.out)["worse_slo_terms"] == ["e2e_p99_s"]
    nothing = loraplan.refused("compare", str(runs / "aimless"), str(runs / "aimless"), "--check", "--json")
    assert "no SLO to check" in nothing


def test_a_run_beside_itself_does_not_differ(loraplan: CommandLine, runs: Path) -> None:
    ended = loraplan("compare", str(runs / "small"), str(runs / "small"), "--all")
    assert "No difference between A and B: p99 E2E is the same." in ended.out
    assert "The scenarios don't differ." in ended.out
    assert ended.err == "note: A and B are the same run.\n"
    assert loraplan("compare", str(runs / "small"), str(runs / "small"), "--quiet").err == ""


def test_other_luck_is_not_paired(loraplan: CommandLine, runs: Path) -> None:
    ended = loraplan("compare", str(runs / "small"), str(runs / "luck"))
    assert "No clear difference between A and B" in ended.out
    assert "met different traffic" in ended.out
    assert "note: The seeds differ (1 and 7)" in ended.err


def test_sweeps_pair_equal_values(loraplan: CommandLine, runs: Path) -> None:
    data = compared(loraplan, runs / "swept", runs / "fifo")
    assert [point["set"] for point in data["points"]] == [{"cache.gpu.slots": 200}, {"cache.gpu.slots": 400}]  # type: ignore[attr-defined]
    assert data["without_partner"] == {"one": [{"cache.gpu.slots": 100}], "other": [{"cache.gpu.slots": 800}]}
    assert {"key": "cache.eviction", "one": "lru", "other": "fifo"} in data["differs"]  # type: ignore[operator]
    ended = loraplan("compare", str(runs / "swept"), str(runs / "fifo"), "--out", "page")
    assert "Left out, without a partner of the same values: 1 of A and 1 of B." in ended.err
    assert Path("page/report.html").exists()


def test_a_single_run_stands_against_every_point(loraplan: CommandLine, runs: Path) -> None:
    data = compared(loraplan, runs / "small", runs / "swept")
    answers = [point["answer"] for point in data["points"]]  # type: ignore[attr-defined]
    assert answers == ["clearly worse", "no clear difference", "clearly better"]
    assert data["answer"] == "mixed"
    assert {"key": "cache.gpu.slots", "one": "200", "other": "swept: 100, 200, 400"} in data["differs"]  # type: ignore[operator]
    back = compared(loraplan, runs / "swept", runs / "small")
    assert [p["answer"] for p in back["points"]] == ["clearly better", "no clear difference", "clearly worse"]  # type: ignore[attr-defined]
    said = loraplan("compare", str(runs / "small"), str(runs / "swept"), "--all").out
    assert "B is better with 400 GPU slots; worse with 100 GPU slots; not clearly different with 200 GPU slots." in said


def test_rates_share_their_draws(loraplan: CommandLine, runs: Path) -> None:
    data = compared(loraplan, runs / "small", runs / "rates")
    assert [point["traffic"] for point in data["points"]] == ["same draws", "same requests"]  # type: ignore[attr-defined]
    assert any("Arrival rates differ" in text for text in data["cautions"])  # type: ignore[attr-defined]


def test_points_that_never_meet_are_refused(loraplan: CommandLine, runs: Path) -> None:
    ended = loraplan.refused("compare", str(runs / "swept"), str(runs / "rates"))
    assert "no points of these runs belong together" in ended
    assert '{"cache.gpu.slots": 100}' in ended


def test_scenarios_must_be_run_first(loraplan: CommandLine, runs: Path, tmp_path: Path) -> None:
    for wrong in ("cache-thrash", "mine.yaml"):
        ended = loraplan.refused("compare", str(runs / "small"), wrong)
        assert f"this is a scenario, not a run directory (got {wrong}); run it first: loraplan run {wrong}" in ended
    assert "no such folder" in loraplan("compare", str(runs / "small"), "nowhere").err
    empty = tmp_path / "empty"
    empty.mkdir()
    ended = loraplan.refused("compare", str(empty), str(runs / "small"))
    assert "is not a run directory" in ended
    assert loraplan("compare", str(runs / "small"), str(runs / "large"), "--out", str(runs / "small")).code == 2


def test_code_and_profiles_that_differ_are_told(loraplan: CommandLine, runs: Path, tmp_path: Path) -> None:
    copy = tmp_path / "older"
    shutil.copytree(runs / "small", copy)
    file = copy / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest |= {"code": "0.0.1+12345678", "profile": {"name": "x", "sha256": "y"}, "status": "interrupted"}
    file.write_text(json.dumps(manifest))
    cautions = "\n".join(compared(loraplan, copy, runs / "large")["cautions"])  # type: ignore[arg-type]
    assert "A was simulated by loraplan 0.0.1+12345678, B by" in cautions
    assert "The profiles differ (x and no profile)" in cautions
    assert "A is not finished: 1 of 1 points." in cautions


TENANTS = """\
schema_version: 1
name: shared
workload:
  requests: 600
  arrivals: {process: poisson, rate: 2/s}
adapters: {count: 8, base_model: llama-3.1-8b}
fleet: {gpu: h100-80gb, max_num_seqs: 8}
cache: {gpu: {slots: 8}, host: {slots: 8}, warm: 8}
tenants:
  - {name: chat, adapters: 4, share: 50%, slo: {ttft_p99: 2 s}}
  - {name: batch, adapters: 4, share: 50%}
run: {replications: 1}
"""


def test_check_goes_by_the_slos_of_tenants(loraplan: CommandLine, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "shared.yaml").write_text(TENANTS)
    for out, slots in (("wide", 8), ("narrow", 1)):
        loraplan.succeeds("run", "shared.yaml", "--set", f"fleet.max_num_seqs={slots}", "--jobs", "1", "--out", out)
    worse = loraplan("compare", "wide", "narrow", "--check", "--json")
    assert worse.code == 1, worse.err
    found = json.loads(worse.out)
    assert found["worse_slo_terms"] == ["tenants.chat.ttft_p99_s"]
    assert found["answer"] == "clearly worse"
    loraplan.succeeds("compare", "narrow", "wide", "--check", "--json")
    assert "\np99 TTFT of chat, SLO 2 s" in loraplan("compare", "wide", "narrow", "--all").out
    alone = loraplan.refused("compare", str(runs / "aimless"), "wide", "--check")
    assert "tenants: only one of the runs has the tenants with an SLO" in alone


def test_a_mix_has_no_rank_of_its_own() -> None:
    kinds = [{"share": 0.5, "rank": 32}, {"share": 0.5, "rank": 64}]
    one, other = ({"adapters": {"count": 8, "rank": 8}}, {"adapters": {"count": 8, "mix": kinds}})
    rows, parts = changed_settings([one, other], [{}, {}])
    assert ("adapters.rank", "8", "mixed") in rows
    assert parts.counts == {"adapters.mix": (0, 2)}
    assert changed_settings([other, other], [{}, {}])[0] == []


def test_lists_that_one_scenario_lacks_show_their_length(loraplan: CommandLine, runs: Path, tmp_path: Path) -> None:
    simulate(tmp_path / "stalled", "cache.gpu.slots=200", "faults=[{kind: storage-stall, at: 60 s, lasts: 10 s}]")
    found = loraplan("compare", str(runs / "small"), str(tmp_path / "stalled"), "--all").out
    assert "1 fault instead of none" in found
    assert re.search(r"^faults +\[\] +1 entry$", found, re.M)
    assert "no value" not in found
