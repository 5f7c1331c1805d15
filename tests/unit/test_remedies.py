"""Cures as changes of a scenario: which one belongs to which, at the same memory, and what can't be priced."""

from __future__ import annotations

from pathlib import Path

import pytest
from log_samples import write_adapter

from reports.render.html import page
from sim.policies.replica_memory import slots_bytes
from sim.results.run_directory.store import read_run
from sim.spec.scenario_file import LoadedScenario, load_scenario
from sim.studies.backends.pool import Local
from sim.studies.design import build
from sim.studies.execution import Execution
from sim.studies.vet.remedies import (
    ALL,
    ALL_SAME_HOST,
    ONE,
    RemedyChange,
    changes_of,
    remedies_of,
    share_of,
    slots_at_same_memory,
)
from sim.studies.vet.remedy_report import badge, cures_answer, remedies_report, remedy_tables
from sim.studies.vet.study import price_remedies
from sim.traffic.adapters import SHAPES, populate
from sim.training.logs.training_facts import TrainingFacts
from sim.training.vet_adapters import vet_path
from sim.training.vet_results import Evidence, Finding, Remedy, Vetted

LARGER = Remedy(
    "rank-16-all-linear",
    "train with rank 16 on all linear layers",
    rank=16,
    targets="all-linear",
    parameters=41_943_040,
)
QUICK = ("workload.requests=600", "run.replications=2")


def vetted(*remedies: Remedy, current: TrainingFacts | None = None, path: str = "stuck") -> Vetted:
    return Vetted(
        Path(path), None, (Finding("underfitting", "likely", (Evidence("flat"),), remedies),), current=current
    )


def priced(remedy: Remedy, *sets: str, current: TrainingFacts | None = None, number: int = 1) -> list[RemedyChange]:
    loaded = load_scenario("retrain-1000-adapters", sets)
    wanted = [vetted(remedy, current=current, path=f"stuck-{i}") for i in range(number)]
    return changes_of(remedy, wanted, loaded, build(loaded.scenario))


def refused(remedy: Remedy, *sets: str, current: TrainingFacts | None = None) -> str:
    (found,) = priced(remedy, *sets, current=current)
    return found.change.refused


def design(sets: dict[str, object], *overrides: str) -> LoadedScenario:
    return load_scenario("retrain-1000-adapters", overrides).with_values(sets)


# Which remedies cost something


def test_every_cure_is_priced_once_for_all_that_need_it() -> None:
    clip = Remedy("clip", "clip gradients at 1.0")
    found = remedies_of([vetted(LARGER, clip), vetted(LARGER, path="other"), Vetted(Path("fine"), None)])
    assert [(remedy, [each.path.name for each in whose]) for remedy, whose in found] == [(LARGER, ["stuck", "other"])]


def test_a_vetted_folder_gives_its_cures(tmp_path: Path) -> None:
    found = remedies_of(vet_path(write_adapter(tmp_path / "stuck")))
    assert [(remedy.rank, remedy.targets) for remedy, _ in found] == [(16, None), (32, None), (16, "all-linear")]


# Larger adapters, at the same memory


def test_larger_adapters_leave_fewer_slots_for_one_and_for_all() -> None:
    one, everyone, same_host = priced(LARGER)
    assert [found.scope for found in (one, everyone, same_host)] == [ONE, ALL, ALL_SAME_HOST]
    assert (one.adapters, everyone.adapters) == (1, 1000)
    assert everyone.change.set == {"adapters.rank": 16, "adapters.targets": "all-linear", "cache.gpu.slots": 32}
    assert one.change.set["cache.gpu.slots"] == 32  # one adapter of rank 16 pads every slot
    assert "one larger adapter enlarges every slot" in one.change.note
    small, large = 4 * 851_968 * 2, 16 * 2_621_440 * 2  # bytes: rank x parameters per rank x 16 bits
    assert (everyone.bytes_before, everyone.bytes_after) == (small, large)
    assert same_host.change.set["cache.host.slots"] == 1000 * small // large


@pytest.mark.parametrize("slots", [7, 64, 100])
@pytest.mark.parametrize("rank", [8, 16, 32, 64])
def test_slots_take_the_same_memory_and_one_more_would_not_fit(slots: int, rank: int) -> None:
    world = build(load_scenario("retrain-1000-adapters", [f"cache.gpu.slots={slots}"]).scenario)
    adapters = design({"adapters.rank": rank}).scenario.adapters
    left = slots_at_same_memory(world, populate(adapters, "llama-3.1-8b", 1000))
    budget = slots_bytes(SHAPES["llama-3.1-8b"], slots, 8)  # vLLM pads rank 4 to 8, its smallest
    assert left == 0 or slots_bytes(SHAPES["llama-3.1-8b"], left, rank) <= budget
    assert slots_bytes(SHAPES["llama-3.1-8b"], left + 1, rank) > budget


def test_kv_memory_stays_where_slots_give_way() -> None:
    before = build(load_scenario("retrain-1000-adapters").scenario).pools[0].kv_tokens
    after = build(design(priced(LARGER)[1].change.set).scenario).pools[0].kv_tokens
    assert before <= after < 1.01 * before


def test_where_not_one_larger_adapter_fits_it_is_said() -> None:
    one, everyone = priced(LARGER, "cache.gpu.slots=1")
    assert one.change.refused == everyone.change.refused == "the memory of 1 slots can't hold one such adapter"


def test_a_cache_by_size_stays_and_holds_fewer() -> None:
    sets = ("fleet.engine=continuous", "fleet.profile=h100-64gb/llama-3.1-8b/assumed", "cache.gpu.size=2 GB")
    _, everyone, _ = priced(LARGER, *sets)
    assert "cache.gpu.slots" not in everyone.change.set
    assert everyone.change.note == "2 GB stay"


@pytest.mark.parametrize(("number", "count"), [(1, 1000), (3, 1000), (7, 8), (1, 1), (5, 5), (999, 1000), (1, 89)])
def test_a_share_stands_for_exactly_so_many_adapters(number: int, count: int) -> None:
    share = share_of(number, count)
    mix: list[dict[str, object]] = [{"share": share, "rank": 8}]
    mix += [] if share == 1 else [{"share": 1 - share, "rank": 4}]
    adapters = design({"adapters.mix": mix}).scenario.adapters
    kinds = populate(adapters, "llama-3.1-8b", count).kind
    assert (kinds == 0).sum() == number
    assert kinds[0] == 0  # the most popular one is among them


def test_a_mix_is_cured_where_it_is_like_the_vetted_adapter() -> None:
    mix = "adapters.mix=[{share: 50%, rank: 4, targets: [q, k, v, o]}, {share: 50%, rank: 16}]"
    current = TrainingFacts(rank=4, modules=("q", "k", "v", "o"))
    one, everyone, *_ = priced(LARGER, mix, current=current)
    assert everyone.who == "all of its kind"
    assert everyone.adapters == 500
    assert [(kind["rank"], kind["targets"]) for kind in everyone.change.set["adapters.mix"]] == [(16, "all-linear")] * 2
    assert "cache.gpu.slots" not in everyone.change.set  # slots were padded to rank 16 already
    assert len(one.change.set["adapters.mix"]) == 3


def test_what_is_not_known_is_refused_and_not_guessed() -> None:
    mix = "adapters.mix=[{share: 50%, rank: 8}, {share: 50%, rank: 16}]"
    assert refused(LARGER, mix) == ("the scenario mixes kinds of adapters, and the kind of the vetted one is unknown")
    assert refused(LARGER, mix, current=TrainingFacts(rank=4, modules=("q", "v"))) == (
        "no kind of adapters.mix has rank 4 on q, v, as the vetted adapter has"
    )
    size = (
        "adapters={base_model: llama-3.1-8b, count: 1000, size: 20 MB}",
        "adapters.rank=null",
        "adapters.targets=null",
    )
    assert "is unknown" in refused(LARGER, *size)
    known = TrainingFacts(rank=4, modules=("q", "k", "v", "o"), parameters=3_407_872)
    _, everyone, *_ = priced(LARGER, *size, current=known)
    assert everyone.bytes_after == round(20_000_000 * 41_943_040 / 3_407_872)


def test_an_adapter_of_another_shape_than_the_scenarios_is_said() -> None:
    one, *_ = priced(LARGER, current=TrainingFacts(rank=2, modules=("q", "v")))
    assert "the vetted adapter has rank 2 on q, v, the scenario's have rank 4 on attention only" in one.change.note


def test_where_a_law_says_how_long_loads_take_the_price_says_that_too() -> None:
    loaded = load_scenario("cache-thrash")  # engine fixed, adapters of 50 MB in a cache of 10 GB
    current = TrainingFacts(rank=4, modules=("q", "k", "v", "o"), parameters=3_407_872)
    found = changes_of(LARGER, [vetted(LARGER, current=current)], loaded, build(loaded.scenario))
    assert [each.bytes_after for each in found] == [round(50_000_000 * 41_943_040 / 3_407_872)] * 2
    assert all("storage.load gives the load time" in each.change.note for each in found)
    assert build(loaded.with_values(found[1].change.set).scenario).pools[0].capacity == 10_000_000_000
    base = Remedy("base-16-bit", "train on a 16-bit base", base_quantization="bf16")
    assert changes_of(base, [vetted(base)], loaded, build(loaded.scenario))[0].change.set == {}


# Base and full fine-tunes


def test_a_base_with_more_bits_takes_memory_from_the_kv_cache() -> None:
    remedy = Remedy("base-16-bit", "train on a 16-bit base", base_quantization="bf16")
    (found,) = priced(remedy, "adapters.base_quantization=nf4")
    assert found.change.set["adapters.base_quantization"] == "bf16"
    four = build(load_scenario("retrain-1000-adapters", ["adapters.base_quantization=nf4"]).scenario).pools[0]
    sixteen = build(design(found.change.set, "adapters.base_quantization=nf4").scenario).pools[0]
    assert sixteen.kv_tokens < four.kv_tokens
    (nothing,) = priced(remedy)
    assert nothing.change.set == {}
    assert nothing.change.note == "the fleet serves its base model in 16 bits already"


def test_a_full_fine_tune_is_priced_with_replicas_of_its_own_and_with_a_pool() -> None:
    own, pool = priced(Remedy("full", "a full fine-tune", full_model=True), number=2)
    assert [found.change.set["fleet.full_models.serve"] for found in (own, pool)] == ["dedicated", "swap"]
    assert [build(design(found.change.set).scenario).replicas for found in (own, pool)] == [3, 2]
    assert own.bytes_after > 15e9  # eight billion parameters of 16 bits


# Prices


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prices at a small run: of a remedy that costs slots, and of one that changes nothing."""
    out = tmp_path_factory.mktemp("priced") / "run"
    nothing = Remedy("base-16-bit", "train on a 16-bit base", base_quantization="bf16")
    loaded = load_scenario("retrain-1000-adapters", QUICK)
    assert price_remedies([vetted(LARGER, nothing)], loaded, out, Execution(Local(1))) is not None
    return out


def test_a_cure_that_changes_nothing_differs_by_exactly_nothing(run: Path) -> None:
    row = read_run(run).manifest["cures"]["rows"][-1]
    assert row["set"] == {}
    assert row["metrics"]
    assert all(found["change"] == found["lo"] == found["hi"] == 0 for found in row["metrics"].values())


def test_prices_show_before_and_after_with_intervals(run: Path) -> None:
    data = read_run(run)
    rows = {row["who"]: row for row in data.manifest["cures"]["rows"]}
    row = rows["all adapters"]
    assert row["memory"]["slots"] == [64, 32]
    for name in ("miss_ratio", "ttft_p99_s"):
        found = row["metrics"][name]
        assert found["paired"]
        assert found["lo"] <= found["change"] <= found["hi"]
    table, nothing = remedy_tables(data)
    assert table.head == ["", "as it is", "one adapter", "all adapters", "all adapters, host memory as before"]
    assert ["GPU slots", "64", "32", "32", "32"] in table.rows
    assert nothing.caption == "Base model in 16 bits"
    said = cures_answer(data)
    assert said.headline.startswith("Rank 16, all linear layers, for one adapter: 64 → 32 slots, p99 TTFT ")
    assert "Base model in 16 bits, for the fleet: it costs nothing; the fleet serves" in " ".join(said.details)
    assert badge(data)[2] in ("met", "not-met", "partly", "unclear")
    text = page(remedies_report(data))
    assert "What was found, and what would its remedies cost?" in text
    assert "stuck: underfitting, likely: flat." in text


def test_prices_are_kept_and_other_questions_refused(run: Path) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in (run / "points").iterdir()}
    loaded = load_scenario("retrain-1000-adapters", QUICK)
    again = [vetted(LARGER, Remedy("base-16-bit", "16", base_quantization="bf16"))]
    assert price_remedies(again, loaded, run, Execution(Local(1))) is not None
    assert {file.name: file.stat().st_mtime_ns for file in (run / "points").iterdir()} == before
    with pytest.raises(Exception, match="this folder holds the answer to another question"):
        price_remedies([vetted(Remedy("r", "r", rank=8))], loaded, run, Execution(Local(1)))


def test_a_vetting_without_costly_cures_simulates_nothing(tmp_path: Path) -> None:
    loaded = load_scenario("retrain-1000-adapters")
    assert price_remedies([vetted(Remedy("clip", "clip gradients"))], loaded, tmp_path / "run") is None
    assert not (tmp_path / "run").exists()


def test_a_refused_change_is_a_row_that_says_why(tmp_path: Path) -> None:
    sets = ("adapters.mix=[{share: 50%, rank: 8}, {share: 50%, rank: 16}]", *QUICK)
    found = price_remedies(
        [vetted(LARGER)], load_scenario("retrain-1000-adapters", sets), tmp_path / "run", Execution(Local(1))
    )
    assert (found.rows[0].refused or "").startswith("the scenario mixes kinds")
    said = cures_answer(read_run(found.path))
    assert said.headline.startswith("Rank 16, all linear layers, for one adapter: not possible, for the scenario mixes")
