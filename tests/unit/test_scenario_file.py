"""Reading a scenario: extends, --set, origins, relative files, sweeps and what people write first."""

from __future__ import annotations

import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter
from scenario_samples import BASE, base, refusal, write
from scipy.stats import lognorm

from sim.errors import InputError, ScenarioError, SeveralErrors
from sim.spec.scenario import Scenario
from sim.spec.scenario_file import LoadedScenario, bundled_path, bundled_scenarios, load_scenario
from sim.spec.sections.laws import LognormalTime, LognormalTokens, TokenLaw, lognormal_shape
from sim.traffic.lengths import TokenLengths
from sim.world.build import build_world

__all__ = ["base"]  # a fixture, used by its name


# What a good file gives

IDEALISED = "fleet.engine=continuous"
"""The engine that goes with a cache of any kind."""


def test_a_file_becomes_a_checked_scenario(base: Path) -> None:
    loaded = load_scenario("base.yaml")
    assert loaded.scenario.cache.gpu.slots == 8
    assert loaded.scenario.workload.arrivals.rate == 12
    assert loaded.source == "base.yaml"


def test_the_data_is_json_and_validates_to_the_same_scenario(base: Path) -> None:
    loaded = load_scenario("base.yaml", ["fleet.profile=./p.json", IDEALISED, "cache.gpu.size=1 GB"], seed=3)
    again = Scenario.model_validate(json.loads(json.dumps(loaded.data)))
    assert again == loaded.scenario
    assert "slots" not in loaded.data["cache"]["gpu"]


def test_a_loaded_scenario_travels_to_worker_processes(base: Path) -> None:
    loaded = load_scenario("base.yaml", ["run.seed=4"])
    assert pickle.loads(pickle.dumps(loaded)) == loaded


def test_dates_and_words_stay_text_and_numbers_are_numbers(base: Path) -> None:
    loaded = load_scenario("base.yaml", ["description=2024-01-01", "workload.requests=1e5"])
    assert loaded.scenario.description == "2024-01-01"
    assert loaded.scenario.workload.requests == 100_000


def test_an_alias_repeats_its_value(base: Path) -> None:
    text = BASE.replace("gpu: {slots: 8}", "gpu: &cache {slots: 8}\n  host: *cache")
    loaded = load_scenario(str(write(base, text)))
    assert loaded.scenario.cache.host.slots == 8


# Origins


def test_every_value_says_where_it_was_written(base: Path) -> None:
    child = write(base.parent / "child.yaml", "extends: base.yaml\nname: child\nfleet:\n  replicas: 3\n")
    loaded = load_scenario(str(child), ["cache.gpu.slots=16"], seed=9)
    rows = {key: (value, origin) for key, value, origin in loaded.rows()}
    here = base.parent
    assert rows["name"] == ("child", f"{here}/child.yaml:2")
    assert rows["fleet.replicas"] == ("3", f"{here}/child.yaml:4")
    assert rows["workload.arrivals.rate"] == ("12/s", f"{here}/base.yaml:6")
    assert rows["workload.popularity.exponent"] == ("0.9", f"{here}/base.yaml:9")
    assert rows["adapters.targets"] == ("[q, v]", f"{here}/base.yaml:12")
    assert rows["cache.gpu.slots"] == ("16", "--set")
    assert rows["run.seed"] == ("9", "--seed")
    assert rows["run.warmup"] == ("5%", "default")
    assert rows["fleet.service"] == ("unset", "default")
    assert rows["workload.tokens.prompt.mean"] == ("600", "default")


def test_locate_finds_the_value_or_the_section_around_it(base: Path) -> None:
    loaded = load_scenario("base.yaml")
    exact = loaded.locate(ScenarioError("odd", key="workload.popularity.exponent"))
    assert str(exact) == "base.yaml:9: workload.popularity.exponent: odd"
    around = loaded.locate(ScenarioError("odd", key="cache.gpu.size"))
    assert (around.file, around.line) == ("base.yaml", 14)
    nowhere = loaded.locate(ScenarioError("odd", key="storage.load.mean"))
    assert (nowhere.file, nowhere.line) == ("base.yaml", 1)
    elsewhere = ScenarioError("odd", key="name", file="t.csv", line=7)
    assert loaded.locate(elsewhere) is elsewhere
    both = loaded.locate(SeveralErrors([ScenarioError("a", key="name"), ScenarioError("b", key="adapters.count")]))
    assert str(both) == "base.yaml:2: name: a\nbase.yaml:11: adapters.count: b"


# extends


def child_of(base: Path, text: str) -> LoadedScenario:
    return load_scenario(str(write(base.parent / "child.yaml", f"extends: base.yaml\n{text}")))


def value_at(data: Any, path: str) -> object:
    for part in path.split("."):
        data = data.get(part)
    return data


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("workload: {arrivals: {rate: 5/s}}", {"workload.arrivals": {"process": "poisson", "rate": "5/s"}}),
        ("adapters: {targets: [k]}", {"adapters": {"count": 100, "targets": ["k"]}, "extends": None}),
        ("workload: {popularity: {law: uniform}}", {"workload.popularity": {"law": "uniform"}}),
        ("workload: {popularity: {law: zipf, exponent: 1}}", {"workload.popularity": {"law": "zipf", "exponent": 1}}),
        ("workload: {duration: 1 h}", {"workload.duration": "1 h", "workload.requests": None}),
        ("fleet: {engine: continuous}\ncache: {gpu: {size: 1 GB}}", {"cache.gpu": {"size": "1 GB"}}),
    ],
)
def test_mappings_merge_and_lists_other_laws_and_exclusive_keys_replace(
    base: Path, text: str, found: dict[str, object]
) -> None:
    data = child_of(base, text + "\n").data
    assert {path: value_at(data, path) for path in found} == found


def test_a_trace_replaces_arrivals_and_keeps_requests_as_its_limit(base: Path) -> None:
    loaded = child_of(base, "workload: {trace: {file: t.csv}, duration: 1 h}\n")
    assert loaded.scenario.workload.arrivals is None
    assert (loaded.scenario.workload.requests, loaded.scenario.workload.duration) == (1000, 3600)


def test_null_removes(base: Path) -> None:
    assert child_of(base, "cache: null\nworkload: {popularity: }\n").scenario.cache.gpu.slots == 32
    assert "child.yaml:2: adapters.count: the number" in refusal(
        write(base.parent / "c2" / "child.yaml", "extends: ../base.yaml\nadapters: {count: null}\n")
    )


def test_both_of_two_exclusive_keys_in_one_file_stay_an_error(base: Path) -> None:
    child = write(base.parent / "child.yaml", "extends: base.yaml\nworkload:\n  requests: 5\n  duration: 1 h\n")
    assert refusal(child) == f"{child}:4: workload.duration: give either requests or duration, not both"


def test_extends_is_relative_to_its_file_and_goes_on(base: Path) -> None:
    write(base.parent / "a" / "middle.yaml", "extends: ../base.yaml\nfleet: {replicas: 2}\n")
    top = write(base.parent / "b" / "top.yaml", "extends: ../a/middle.yaml\nname: top\n")
    loaded = load_scenario(str(top))
    assert (loaded.scenario.name, loaded.scenario.fleet.replicas, loaded.scenario.cache.gpu.slots) == ("top", 2, 8)


def test_a_circle_is_refused(base: Path) -> None:
    write(base.parent / "a.yaml", "name: a\nextends: b.yaml\n")
    write(base.parent / "b.yaml", "extends: a.yaml\n")
    assert refusal("a.yaml") == (
        "b.yaml:1: extends: scenarios extend each other in a circle (got a.yaml → b.yaml → a.yaml)"
    )


def test_a_base_that_is_missing_is_reported_where_it_was_asked_for(base: Path) -> None:
    child = write(base.parent / "child.yaml", "name: c\nextends: bse.yaml\n")
    assert f"{child}:2: extends: {base.parent}/bse.yaml: no such file" in refusal(child)
    child = write(base.parent / "child.yaml", "name: c\nextends: [a]\n")
    assert f"{child}:2: extends: must name one scenario" in refusal(child)


def test_a_problem_in_the_base_names_the_base(base: Path) -> None:
    write(base, BASE.replace("rate: 12/s", "rate: 12"))
    message = refusal(write(base.parent / "child.yaml", "extends: base.yaml\nname: a b\n"))
    lines = message.splitlines()
    assert lines[0].startswith(f"{base}:6: workload.arrivals.rate: not a rate (got 12,")
    assert lines[1].startswith(f"{base.parent}/child.yaml:2: name: not a usable name (got a b,")


# --set


@pytest.mark.parametrize(
    ("overrides", "path", "value"),
    [
        (["cache.gpu.slots=16"], "cache.gpu", {"slots": 16}),
        (["cache.gpu.size=1 GB"], "cache.gpu", {"size": "1 GB"}),
        (["cache.gpu.size=1 GB", "cache.gpu.slots=3"], "cache.gpu", {"slots": 3}),
        (["cache.gpu={size: 1 GB}"], "cache.gpu", {"size": "1 GB"}),
        (["cache.host.slots=5"], "cache.host", {"slots": 5}),
        (["workload.popularity.exponent=1"], "workload.popularity", {"law": "zipf", "exponent": 1}),
        (["workload.popularity.law=uniform"], "workload.popularity", {"law": "uniform"}),
        (["workload.popularity={law: uniform}"], "workload.popularity", {"law": "uniform"}),
        (
            # The law is set first whatever the order, or it would drop the cv that was given for it.
            ["workload.arrivals.cv=4", "workload.arrivals.rate=1/s", "workload.arrivals.process=gamma"],
            "workload.arrivals",
            {"process": "gamma", "rate": "1/s", "cv": 4},
        ),
        (["adapters.targets.1=k"], "adapters.targets", ["q", "k"]),
        (["adapters.targets=[o]"], "adapters.targets", ["o"]),
        (["description=traffic: doubled"], "description", "traffic: doubled"),
        (["description='a: b'"], "description", "a: b"),
        (["workload.duration=5 min"], "workload.duration", "5 min"),
        (["sweep.cache.gpu.slots=[1, 2]"], "sweep", {"cache.gpu.slots": [1, 2]}),
    ],
)
def test_set_overlays_like_a_file(base: Path, overrides: list[str], path: str, value: object) -> None:
    assert value_at(load_scenario("base.yaml", [IDEALISED, *overrides]).data, path) == value


def test_set_to_nothing_removes(base: Path) -> None:
    loaded = load_scenario("base.yaml", ["workload.popularity=", "cache=null"])
    assert loaded.scenario.workload.popularity.law == "uniform"
    assert "cache" not in loaded.data


def test_set_refuses_a_key_of_many_words(base: Path) -> None:
    assert refusal("base.yaml", ".".join("a" * 5000) + "=1").startswith("--set: not a dotted key")


# Files inside a scenario


def test_files_are_relative_to_the_file_that_names_them_or_to_where_the_user_stands(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        base.parent / "far" / "b.yaml",
        BASE.replace("    law: zipf\n    exponent: 0.9", "    law: weights\n    file: w.csv")
        + "fleet: {profile: ../p.json}\nsweep: {fleet.profile: [./q.json, h100/llama/x]}\n",
    )
    far = base.parent / "far" / "b.yaml"
    top = write(base.parent / "near" / "top.yaml", "extends: ../far/b.yaml\n")
    stand = base.parent / "stand"
    stand.mkdir()
    monkeypatch.chdir(stand)
    loaded = load_scenario(
        os.path.relpath(top), ["workload.tokens.prompt={law: empirical, file: t.csv, column: n}", "sweep.x=null"]
    )
    far_itself = load_scenario(os.path.relpath(far), ["sweep.x=null"])
    assert loaded.data["workload"]["popularity"]["file"] == f"{base.parent}/far/w.csv"
    assert loaded.data["fleet"]["profile"] == f"{base.parent}/p.json"
    assert far_itself.data["sweep"]["fleet.profile"] == [f"{base.parent}/far/q.json", "h100/llama/x"]
    assert loaded.data["workload"]["tokens"]["prompt"]["file"] == f"{stand}/t.csv"
    swept = load_scenario(str(top), ["sweep.workload.popularity.file=[v.csv]"])
    assert swept.data["sweep"]["workload.popularity.file"] == [f"{stand}/v.csv"]
    point = loaded.with_values({"workload.popularity.file": "u.csv", "fleet.profile": "some/bundled/name"})
    assert point.data["workload"]["popularity"]["file"] == f"{stand}/u.csv"
    assert point.data["fleet"]["profile"] == "some/bundled/name"


# Sweeps


def test_a_point_takes_its_values_by_the_rules_of_set(base: Path) -> None:
    loaded = load_scenario("base.yaml", [IDEALISED])
    point = loaded.with_values({"cache.gpu.size": "2 GB", "run.seed": 5})
    assert point.data["cache"]["gpu"] == {"size": "2 GB"}
    assert loaded.data["cache"]["gpu"] == {"slots": 8}, "the original stays as it was"
    rows = {key: origin for key, _, origin in point.rows()}
    assert rows["run.seed"] == rows["cache.gpu.size"] == "sweep"
    assert rows["adapters.count"] == "base.yaml:11"


def test_a_point_that_is_no_scenario_says_which_value(base: Path) -> None:
    with pytest.raises(ScenarioError) as caught:
        load_scenario("base.yaml").with_values({"cache.gpu.slots": 0})
    assert str(caught.value) == "sweep: cache.gpu.slots: out of range (got 0, allowed: above 0)"


def test_keys_that_only_go_together_may_be_swept_together(base: Path) -> None:
    sweep = "sweep: {fleet.max_num_seqs: [4096], fleet.max_num_batched_tokens: [4096, 8192]}\n"
    loaded = load_scenario(str(write(base.parent / "swept.yaml", BASE + sweep)))
    assert loaded.scenario.sweep["fleet.max_num_seqs"] == (4096,)


CONTRADICTED = "sweep: {fleet.max_num_batched_tokens: [256, 4096]}\n"


def test_a_set_may_contradict_points_that_are_not_simulated(base: Path) -> None:
    source = write(base.parent / "swept.yaml", BASE + CONTRADICTED)
    assert load_scenario(str(source)).scenario.fleet.max_num_seqs == 1024
    loaded = load_scenario(str(source), ["fleet.max_num_seqs=512"], check_points=False)
    assert loaded.scenario.fleet.max_num_seqs == 512
    assert loaded.scenario.sweep == {"fleet.max_num_batched_tokens": (256, 4096)}, "the block is still there"


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("max_loras: [1]", "16: sweep.max_loras: unknown key; --max-loras of vLLM and TensorRT-LLM is cache.gpu.slots"),
        ("cache.gpu.slots: []", "16: sweep.cache.gpu.slots: no values"),
        ("cache.gpu.slots: 4", "16: sweep.cache.gpu.slots: must be a list"),
        ("name: [a]", "16: sweep.name: this can't be swept"),
    ],
)
def test_keys_of_a_sweep_are_checked_whether_or_not_it_is_simulated(base: Path, sweep: str, message: str) -> None:
    source = write(base.parent / "swept.yaml", f"{BASE}sweep:\n  {sweep}\n")
    with pytest.raises(InputError) as caught:
        load_scenario(str(source), check_points=False)
    assert str(caught.value).startswith(f"{source}:{message}")


def test_a_sweep_is_not_inherited(base: Path) -> None:
    base.write_text(BASE + "sweep: {cache.gpu.slots: [4, 16]}\n")
    assert load_scenario("base.yaml").scenario.sweep == {"cache.gpu.slots": (4, 16)}
    child = child_of(base, "fleet: {engine: continuous}\ncache: {gpu: {size: 1 GB}}\n")
    assert child.scenario.sweep == {}
    assert "sweep" not in child.data
    own = child_of(base, "sweep: {fleet.replicas: [1, 2]}\n")
    assert own.scenario.sweep == {"fleet.replicas": (1, 2)}
    assert child_of(base, "sweep: null\n").scenario.sweep == {}
    write(base.parent / "top.yaml", "extends: child.yaml\n")
    write(base.parent / "child.yaml", "extends: base.yaml\nsweep: {fleet.replicas: [1, 2]}\n")
    assert load_scenario(str(base.parent / "top.yaml")).scenario.sweep == {}
    assert load_scenario(str(base.parent / "top.yaml"), ["sweep.run.seed=[1]"]).scenario.sweep == {"run.seed": (1,)}


def test_a_broken_sweep_of_the_base_breaks_no_scenario_that_extends_it(base: Path) -> None:
    base.write_text(BASE + "sweep: {cache.gpu.slot: [4], name: 7}\n")
    assert "sweep.name" in refusal(base)
    assert child_of(base, "fleet: {replicas: 2}\n").scenario.fleet.replicas == 2


def test_every_bundled_scenario_has_the_sweep_of_its_own_file() -> None:
    for name in bundled_scenarios():
        text = bundled_path(name).read_text(encoding="utf-8")
        assert bool(load_scenario(name).scenario.sweep) == ("\nsweep:" in text), name


# What people write first: laws by two figures, bursts by their name, times of day, counts of adapters


SHAPE = lognorm(s=0.7, scale=200.0)
FIGURES = {"mean": SHAPE.mean(), "p50": 200.0, "p90": SHAPE.ppf(0.9), "p99": SHAPE.ppf(0.99)}
ROLLOUT = "rollouts: [{{strategy: in-place, at: {at}, {who}}}]\n"


@pytest.mark.parametrize("given", [(a, b) for a in FIGURES for b in FIGURES if a < b])
def test_any_two_figures_give_the_same_log_normal_law(given: tuple[str, str]) -> None:
    two = {name: float(FIGURES[name]) for name in given}
    mu, sigma = LognormalTokens(law="lognormal", **two).shape()
    assert (mu, sigma) == pytest.approx((np.log(200), 0.7))
    seconds = {name: f"{value} s" for name, value in two.items()}
    time = LognormalTime.model_validate({"law": "lognormal", **seconds})
    assert time.mean() == pytest.approx(SHAPE.mean())
    assert time.ppf(np.array([0.5, 0.9])) == pytest.approx([200, FIGURES["p90"]])


def test_a_quantile_at_its_limit_is_a_law() -> None:
    """There both roots for sigma are the quantile of the standard normal; rounding must not make them complex."""
    for name, z in (("p90", 1.2815515655446004), ("p99", 2.3263478740408408)):
        for mean in range(1, 1000):
            mu, sigma = lognormal_shape({"mean": float(mean), name: math.exp(z**2 / 2) * mean})
            assert sigma == pytest.approx(z, abs=1e-6)
            assert mu == pytest.approx(math.log(mean) - z**2 / 2, abs=1e-5)


def test_the_longest_answer_of_a_law_by_its_median_is_its_p99() -> None:
    law = TypeAdapter(TokenLaw).validate_python({"law": "lognormal", "p50": 200, "p90": float(FIGURES["p90"])})
    assert TokenLengths(law).longest == pytest.approx(FIGURES["p99"])


def test_bursty_is_gamma_with_a_cv_of_4(base: Path) -> None:
    named, spelt = (
        next(iter(build_world(load_scenario(str(base), [f"workload.arrivals={law}"]).scenario).traffic.chunks(0)))
        for law in ("{process: bursty, rate: 12/s}", "{process: gamma, rate: 12/s, cv: 4}")
    )
    assert np.array_equal(named.arrival_s, spelt.arrival_s)


@pytest.mark.parametrize(
    ("start", "at", "seconds"), [("08:00", "12:00", 14400), ("23:59:30", "00:00", 30), ("8:00", "08:00:05", 5)]
)
def test_a_time_of_day_counts_from_the_start(base: Path, start: str, at: str, seconds: float) -> None:
    text = BASE.replace("  requests: 1000\n", f'  duration: 1 d\n  start: "{start}"\n')
    changes = ROLLOUT.format(at=f'"{at}"', who="adapter: 3") + f'faults: [{{kind: crash, at: "{at}", replica: 0}}]\n'
    scenario = load_scenario(str(write(base.parent / "day.yaml", text + changes))).scenario
    assert scenario.rollouts[0].at == seconds
    assert getattr(scenario.faults[0], "at") == seconds  # noqa: B009 - faults of other kinds have none


def test_the_peak_of_a_day_may_be_a_time_of_day(base: Path) -> None:
    overrides = ["workload.start=06:00", "workload.arrivals={process: diurnal, rate: 2/s, peak_at: '14:00'}"]
    arrivals = load_scenario(str(base), overrides).scenario.workload.arrivals
    assert getattr(arrivals, "peak_at") == 8 * 3600  # noqa: B009 - other processes have none


def test_so_many_adapters_are_rolled_out_and_no_other_rollout_takes_them(base: Path) -> None:
    several = "rollouts:\n" + "".join(
        f"  - {{strategy: in-place, at: 1 s, {who}}}\n" for who in ("count: 5", "share: 20%", "count: 75")
    )
    world = build_world(load_scenario(str(write(base.parent / "several.yaml", BASE + several))).scenario)
    taken = [set(planned.names) for planned in world.rollout_plan.rollouts]
    assert [len(each) for each in taken] == [5, 20, 75]
    assert len(set.union(*taken)) == 100


def test_a_card_with_more_memory_has_a_larger_kv_cache(base: Path) -> None:
    plain, larger = (
        build_world(load_scenario(str(base), overrides).scenario).pools[0]
        for overrides in ([], ["fleet.gpu_memory=96 GB"])
    )
    assert larger.kv_tokens > plain.kv_tokens
