"""Which keys a page offers, what they may be, and what a curve along them has."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from sim.errors import ScenarioError, SeveralErrors
from sim.spec.scenario_file import bundled_scenarios, load_scenario, scenario_of_text
from sim.ui.controls import Control, controls_of, curve_values, settings_of
from sim.ui.fragments import commands, design_words, estimate
from sim.ui.library import Library, problems_of

NAMES = list(bundled_scenarios())


def controls(name: str, *overrides: str) -> dict[str, Control]:
    loaded = load_scenario(name, overrides, check_points=False)
    return {control.key: control for control in controls_of(loaded.scenario)}


@pytest.mark.parametrize("name", NAMES)
def test_every_value_that_a_slider_offers_is_one_of_its_control(name: str) -> None:
    for control in controls(name).values():
        if control.disabled:
            with pytest.raises(ScenarioError):
                control.check("1")
            continue
        values = [value for value, _ in control.choices] or list(control.stops)
        assert control.value in values or not control.whole
        assert len(set(values)) == len(values) > 1
        assert [control.check(value) for value in values] == values


@pytest.mark.parametrize("name", NAMES)
def test_own_values_change_nothing(name: str) -> None:
    opened = Library(Path()).open(name)
    own = {control.key: control.value for control in opened.controls if not control.disabled}
    design = opened.design(own)
    assert design.settings == ()
    assert design.loaded.data == opened.loaded.data


@pytest.mark.parametrize(
    ("name", "key", "reason"),
    [
        ("tenants-trace", "adapters.count", "a file"),
        ("cache-thrash", "cache.gpu.slots", "in bytes"),
        ("cache-thrash", "fleet.engine", "service time"),
        ("thousand-adapters", "adapters.rank", "mix of ranks"),
        ("two-cards", "fleet.tensor_parallel", "each pool"),
        ("day-and-night", "fleet.replicas", "autoscaler"),
        ("noisy-neighbour", "adapters.count", "tenants say how many"),
    ],
)
def test_a_control_that_does_not_apply_says_why(name: str, key: str, reason: str) -> None:
    assert reason in controls(name)[key].disabled


def test_tenants_with_rates_of_their_own_have_no_slider_of_the_rate(tmp_path: Path) -> None:
    text = (
        "extends: quickstart\nname: mine\nadapters: {count: 100}\nworkload: {arrivals: {rate: 5/s}}\n"
        "tenants: [{name: a, adapters: 60, rate: 3/s}, {name: b, adapters: 40, rate: 2/s}]\n"
    )
    opened = Library(tmp_path).open("mine.yaml", text)
    rate = next(control for control in opened.controls if control.key == "workload.arrivals.rate")
    assert "tenants.rate" in rate.disabled


@pytest.mark.parametrize("name", ["moving-placement", "quickstart"])
def test_every_router_can_be_chosen(name: str) -> None:
    opened = Library(Path()).open(name)
    router = next(control for control in opened.controls if control.key == "router.policy")
    for policy, _ in router.choices:
        design = opened.design({"router.policy": policy})
        assert design.loaded.scenario.router.policy == policy
        if policy != router.value:
            assert design_words(design) == f"router policy {policy}"


def test_traffic_has_the_key_that_its_kind_has() -> None:
    assert "workload.arrivals.rate" in controls("quickstart")
    assert "workload.trace.time_scale" in controls("tenants-trace")
    closed = controls("quickstart", "workload.arrivals={process: closed, concurrency: 8}")
    assert closed["workload.arrivals.concurrency"].value == "8"
    assert set(controls("two-cards")) >= {"fleet.pools.big.replicas", "fleet.pools.small.replicas"}


def test_host_memory_that_a_scenario_lacks_can_be_added_and_left_out_again() -> None:
    opened = Library(Path()).open("cache-thrash")
    host = next(control for control in opened.controls if control.key == "cache.host.slots")
    assert host.value == host.stops[0] == ""
    assert opened.design({host.key: "50"}).loaded.scenario.cache.host is not None
    assert opened.design({host.key: ""}).settings == ()


@pytest.mark.parametrize("warm", ["0", "steady", "40"])
def test_what_an_answer_says_of_caches_at_the_start_can_be_done_on_the_page(warm: str) -> None:
    control = controls("quickstart", f"cache.warm={warm}")["cache.warm"]
    assert (control.value, control.disabled) == (warm, "")
    assert {"0", "steady", warm} == {name for name, _ in control.choices}
    assert "cache.warm=steady" in control.settings(control.check("steady"))


def test_values_that_are_none_are_refused_at_their_control() -> None:
    opened = Library(Path()).open("quickstart")
    values = {
        "cache.gpu.slots": "many",
        "fleet.replicas": "1.5",
        "workload.arrivals.rate": "inf",
        "router.policy": "nearest",
        "adapters.count": "",
        "slo.ttft_p99": "9" * 50,
        "workload.trace.file": "/etc/passwd",
    }
    with pytest.raises(SeveralErrors) as caught:
        settings_of(opened.controls, values)
    found = {problem["control"]: problem["text"] for problem in problems_of(caught.value, opened.controls, None)}
    assert set(found) == {
        "cache-gpu-slots",
        "fleet-replicas",
        "workload-arrivals-rate",
        "router-policy",
        "adapters-count",
        "slo-ttft-p99",
        "",
    }
    assert "no control of this page" in found[""]
    assert "got many, allowed: a whole number" in found["cache-gpu-slots"]


def test_a_value_cannot_carry_yaml_or_another_key() -> None:
    slots = controls("quickstart")["cache.gpu.slots"]
    for text in ("{law: fixed}", "1\nname: x", "0x10", "1e999", "nan", "!!python/object:x", "1_000_000_0" * 9):
        with pytest.raises(ScenarioError):
            slots.check(text)
    assert slots.check("32.0") == "32"


@pytest.mark.parametrize(
    ("name", "key", "text", "value"),
    [
        ("tenants-trace", "workload.trace.time_scale", "0.00001", 1e-5),
        ("tenants-trace", "workload.trace.time_scale", "2", 2.0),
        ("quickstart", "workload.arrivals.rate", "0.00001", "1e-05/s"),
        ("quickstart", "cache.gpu.slots", "32.0", 32),
        ("quickstart", "fleet.engine", "sglang", "sglang"),
    ],
)
def test_a_value_is_typed_as_a_sweep_has_it(name: str, key: str, text: str, value: object) -> None:
    control = controls(name)[key]
    typed = control.typed(control.check(text))
    assert typed == value
    assert type(typed) is type(value)


def test_what_the_scenario_check_refuses_stands_at_the_control_that_was_moved() -> None:
    opened = Library(Path()).open("quickstart")
    with pytest.raises(ScenarioError) as caught:
        opened.design({"cache.gpu.slots": "-3"})
    problem, at_moved = problems_of(caught.value, opened.controls, "adapters.count")
    assert problem["control"] == "cache-gpu-slots"
    assert not problem["text"].startswith(("--set", "cache.gpu.slots"))
    assert at_moved["control"] == "adapters-count"
    assert at_moved["text"] == f"cache.gpu.slots: {problem['text']}"
    (other,) = problems_of(ScenarioError("out of memory", key="fleet.max_num_seqs"), opened.controls, "adapters.count")
    assert other["control"] == "adapters-count"


def test_a_curve_starts_where_the_visitor_stands_and_goes_on_with_doublings() -> None:
    slots = controls("quickstart")["cache.gpu.slots"]
    values = curve_values(slots, "45")
    assert values[0] == "45"
    assert values[1:8] == ["4", "8", "16", "32", "64", "128", "256"]
    assert set(values[8:]) < set(slots.stops)
    engines = controls("quickstart")["fleet.engine"]
    assert curve_values(engines, "sglang")[0] == "sglang"
    assert len(curve_values(engines, "sglang")) == len(engines.choices)


def test_a_text_is_checked_as_a_file_in_the_folder_and_may_name_nothing_outside(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("extends: quickstart\nname: base\n")
    inside = scenario_of_text(b"extends: base.yaml\nname: mine\n", "mine.yaml", tmp_path)
    assert inside.scenario.name == "mine"
    for outside in ("/etc/hostname", "../x.csv"):
        text = f"extends: quickstart\nname: mine\nworkload: {{trace: {{file: {outside}}}}}\n"
        with pytest.raises(ScenarioError, match=r"mine\.yaml:3"):
            scenario_of_text(text.encode(), "mine.yaml", tmp_path)
    with pytest.raises(ScenarioError, match=r"mine\.yaml:2"):
        scenario_of_text(b"name: x\n: [", "mine.yaml", tmp_path)


def test_a_library_opens_what_it_lists_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: quickstart\nname: mine\n")
    (tmp_path / "link.yaml").symlink_to("/etc/hostname")
    (tmp_path / "deployment.yaml").write_text("apiVersion: apps/v1\nkind: Deployment\n")
    library = Library(tmp_path)
    assert library.files() == ["mine.yaml"]
    assert library.open("mine.yaml").loaded.scenario.name == "mine"
    for name in (
        "../mine.yaml",
        str(tmp_path / "mine.yaml"),
        "link.yaml",
        "/etc/hostname",
        "",
        "scenarios/quickstart.yaml",
    ):
        with pytest.raises(ScenarioError, match="no such scenario here"):
            library.open(name)


def test_the_command_of_a_design_runs_as_it_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my scenarios"
    folder.mkdir()
    (folder / "mine.yaml").write_text("extends: quickstart\nname: mine\n")
    monkeypatch.chdir(tmp_path)
    library = Library(folder, "my scenarios/mine.yaml")
    slots = {"cache.gpu.slots": "16"}
    for name in ("mine.yaml", "my scenarios/mine.yaml", "quickstart"):
        design = library.open(name).design(slots)
        program, verb, file, *settings = shlex.split(design.command())
        assert (program, verb) == ("loraplan", "run")
        loaded = load_scenario(file, [each for each in settings if each != "--set"])
        assert loaded.data == design.loaded.data
        assert "Save scenario.yaml first." not in commands(design, estimate(design))


def test_a_dropped_text_is_saved_before_its_command_is_run(tmp_path: Path) -> None:
    opened = Library(tmp_path).open("dropped.yaml", "extends: quickstart\nname: mine\n")
    design = opened.design({"cache.gpu.slots": "16"})
    assert design.command() == "loraplan run scenario.yaml"
    assert "Save scenario.yaml first." in commands(design, estimate(design))
