"""How well rows of the published tables are predicted by fits that don't know them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibrate.fit.report import closing, decide, fit_report
from calibrate.fit.sample_terms import ADDITIVE, IN_SAMPLE, MULTIPLICATIVE
from reports.table import Table
from sim.spec.profile import Draw, HoldOut, LoadCost, Memory, load_profile
from sim.studies.fidelity.least_squares import LEFT_OUT, Problem, bootstrap, hold_out_line
from sim.studies.fidelity.measured_runs import read_lengths, read_runs
from validation.published.profile_from_runs import calibration_subset, closed_loops
from validation.published.published_costs import (
    CELL_OUT,
    HALVES,
    KV_COLUMNS,
    LAW,
    LOAD_COLUMNS,
    NOISE,
    TOGETHER,
    fit_load_law,
    fit_loads,
    fit_memory,
    load_cells,
    load_draws,
    load_hold_outs,
    read_rows,
)
from validation.published.step_fit import (
    ALONE,
    ROUNDS,
    TERMS,
    ClosedLoops,
    ServedHours,
    cost_of,
    fit_steps,
    join,
    step_hold_outs,
)

MODELS = ("llama-3.1-8b", "qwen2.5-7b")


def loops_of(shared: Path, model: str) -> ClosedLoops:
    folder = shared / "vllm_h100"
    memory = fit_memory(read_rows(folder / "kv_capacity.csv", KV_COLUMNS, model), model).section
    assert isinstance(memory, Memory)
    return closed_loops(folder, model, memory)


def keyed(lines: tuple[HoldOut, ...]) -> dict[tuple[str, str, str], HoldOut]:
    found = {(line.what, line.form, line.method): line for line in lines}
    assert len(found) == len(lines)
    return found


@pytest.mark.parametrize("model", MODELS)
def test_closed_loops_predict_each_other(shared: Path, model: str) -> None:
    loops = loops_of(shared, model).problem
    lines = step_hold_outs(loops, loops)
    by = keyed(lines)
    assert by["base decode steps", ADDITIVE, LEFT_OUT + ALONE].mean <= 0.015
    assert by["LoRA decode steps", ADDITIVE, LEFT_OUT + ALONE].mean <= 0.015
    if model == "llama-3.1-8b":  # of Qwen no prefill run fills its batch
        assert by["prefill steps", ADDITIVE, LEFT_OUT + ALONE].mean <= 0.01
    decision = decide(lines)
    assert decision["better"] == ADDITIVE
    assert decision[ADDITIVE] < 0.8 * decision[MULTIPLICATIVE]
    corner = "far corner" + ALONE
    ours, rival = (by["LoRA decode steps", form, corner] for form in (ADDITIVE, MULTIPLICATIVE))
    assert (ours.mean <= 0.02, rival.mean > 1.5 * ours.mean) == (True, True)


def test_rows_are_left_out_for_what_they_show(shared: Path) -> None:
    assert loops_of(shared, "llama-3.1-8b").left_out == {
        "no batch size given": 1,
        "sequences outgrow the KV cache and are preempted": 2,
    }
    assert loops_of(shared, "qwen2.5-7b").left_out == {
        "no batch size given": 4,
        "fewer requests than the batch holds": 3,
    }


def test_full_prompt_steps_take_the_same_time_whatever_prompts_fill_them(shared: Path) -> None:
    """They would not if the start of these runs, before any token comes out, counted as steps."""
    loops = loops_of(shared, "llama-3.1-8b").problem
    prefill = loops.seconds[np.array(loops.kind) == "prefill steps"]
    assert len(prefill) == 12
    assert prefill == pytest.approx(np.full(12, np.median(prefill)), rel=0.02)


@pytest.mark.parametrize("model", MODELS)
def test_the_bundled_profile_says_what_it_does_not_know(model: str) -> None:
    profile, _ = load_profile(f"h100-64gb/{model}/vllm-0.8.5")
    by = keyed(profile.hold_out)
    assert by["base decode steps", ADDITIVE, LEFT_OUT].mean <= 0.03
    assert by["LoRA decode steps", ADDITIVE, LEFT_OUT].mean <= 0.05
    assert len(profile.draws) == 16


@pytest.mark.parametrize("model", MODELS)
def test_loads_that_are_held_out_are_predicted(shared: Path, model: str) -> None:
    cells = load_cells(read_rows(shared / "vllm_h100" / "load_samples.csv", LOAD_COLUMNS))
    by = keyed(load_hold_outs(cells, model))
    for method in (HALVES, CELL_OUT):
        assert by["loads from host, p50", LAW, method].mean <= 0.03
        assert by["loads from host, p99", LAW, method].mean <= 0.15
    assert by["reads from storage, p99", LAW, TOGETHER].mean <= 0.15
    # The halves of a Qwen cell differ by 5 % in their medians: nothing predicts one of them within 3 %.
    p50, noise = (by["reads from storage, p50", form, HALVES].mean for form in (LAW, NOISE))
    assert p50 <= 0.03 if noise <= 0.015 else p50 <= 1.5 * noise
    # Reads of the smallest Llama adapters spread three times as far as others; one spread for all misses them.
    assert by["reads from storage, p99", LAW, HALVES].mean <= 0.2


@pytest.mark.parametrize("model", MODELS)
def test_draws_of_loads_spread_around_the_law(shared: Path, model: str) -> None:
    rows = read_rows(shared / "vllm_h100" / "load_samples.csv", LOAD_COLUMNS)
    cells, fitted = load_cells(rows), fit_loads(rows, model).section
    assert isinstance(fitted, LoadCost)
    draws = load_draws(cells, model, 16)
    assert draws == load_draws(cells, model, 16)
    medians = np.array([draw.host.open_s + 400 * draw.host.per_tensor_s for draw in draws])
    assert 0 < medians.std() / medians.mean() < 0.05
    assert medians.min() <= fitted.host.open_s + 400 * fitted.host.per_tensor_s <= medians.max()
    assert len({len(draw.storage.residual) for draw in draws} | {len(fitted.host.residual)}) == 1
    assert fitted.host.residual[50] == pytest.approx(1, abs=1e-6)


def test_the_load_law_knows_cells_it_has_not_seen(shared: Path) -> None:
    cells = load_cells(read_rows(shared / "vllm_h100" / "load_samples.csv", LOAD_COLUMNS))
    out = ("llama-3.1-8b", 16, 32, "reload")
    law = fit_load_law([one for one in cells if one[0] != out], "llama-3.1-8b")
    measured = float(np.median(dict(cells)[out]))
    assert law.median_s(out) == pytest.approx(measured, rel=0.05)
    assert law.copy_s(16, 32) > law.copy_s(32, 32)


def test_one_round_fits_a_profile_with_its_equations(shared: Path) -> None:
    """The joint path, over the two lightest hours."""
    folder = shared / "vllm_h100"
    lengths = read_lengths(folder / "sharegpt_lengths.json")
    subset = [run for run in calibration_subset(read_runs(folder / "runs.csv")) if run.model == MODELS[0]]
    light = sorted(subset, key=lambda run: sum(rate * count for rate, count in run.rates))[:2]
    loops = loops_of(shared, MODELS[0]).problem
    profile, _ = load_profile(f"h100-64gb/{MODELS[0]}/vllm-0.8.5")
    seen: list[tuple[int, int]] = []
    fitted = fit_steps(
        ServedHours(light, lengths, rounds=1), loops, profile, jobs=1, progress=lambda *at: seen.append(at)
    )
    assert seen == [(1, 2), (2, 2)]
    assert ROUNDS == 4
    assert len(fitted.problem) == len(loops) + 6
    assert fitted.problem.configuration[-1] == light[-1].name
    assert fitted.residuals["LoRA decode steps"] < 0.02
    by = keyed(step_hold_outs(loops, fitted.problem))
    assert by["base decode steps", ADDITIVE, LEFT_OUT].mean <= 0.03
    assert by["LoRA decode steps", ADDITIVE, LEFT_OUT].mean <= 0.05
    assert by["LoRA decode steps", ADDITIVE, IN_SAMPLE].mean <= by["LoRA decode steps", ADDITIVE, LEFT_OUT].mean
    assert fitted.profile.step.fixed_s == pytest.approx(0.012, rel=0.1)
    assert fitted.profile.step.lora.per_adapter_s > 0
    draws = [cost_of(dict(zip(TERMS, terms, strict=True))) for terms in bootstrap(fitted.problem, 2)]
    assert draws[0] != draws[1]


def test_the_report_has_every_line_and_the_decision(shared: Path, tmp_path: Path) -> None:
    profile, _ = load_profile(f"h100-64gb/{MODELS[0]}/vllm-0.8.5")
    loops = loops_of(shared, MODELS[0]).problem
    lines = step_hold_outs(loops, loops)
    drawn = profile.model_copy(update={"hold_out": lines, "draws": (Draw(step=profile.step, load=profile.load),) * 16})
    report = fit_report(drawn, tmp_path / "p.json")
    table, _, *words = report.terminal
    assert isinstance(table, Table)
    assert len(table.rows) == len(lines)
    assert words[0].startswith("The additive form predicts better: ")
    assert words[0].endswith(f"({LEFT_OUT}{ALONE}).")
    assert "16 bootstrap draws of step and load costs." in words
    data = report.data
    assert (data["draws"], data["decision"]["better"], len(data["hold_out"])) == (16, ADDITIVE, len(lines))


def test_the_multiplicative_form_may_win() -> None:
    def line(form: str, error: float) -> HoldOut:
        return hold_out_line("LoRA decode steps", form, LEFT_OUT, np.array([error, -error]))

    lines = (line(ADDITIVE, 0.04), line(MULTIPLICATIVE, 0.02))
    decision = decide(lines)
    assert decision["better"] == MULTIPLICATIVE
    profile, _ = load_profile(f"h100-64gb/{MODELS[0]}/vllm-0.8.5")
    sentence = closing(profile.model_copy(update={"hold_out": lines}))[0]
    assert "2.00% against 4.00%; the profile holds the additive one" in sentence
    assert decide((line(ADDITIVE, 0.04),)) is None


def test_equations_of_a_run_keep_their_name() -> None:
    one = Problem.of({"t": [1]}, [1], configuration=("a",))
    assert join([one, one]).configuration == ("a", "a")
    assert len(join([one, one]).places()["a"]) == 2
