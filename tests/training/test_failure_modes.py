"""What the rules say of courses written by hand: each mode where it is, and nothing where the evidence is thin."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from log_samples import Curve, closing, falling, history, write_config, write_log

from calibrate.loads.synthetic_adapters import SyntheticAdapter, synthesize
from sim.spec.scenario import Targets
from sim.traffic.adapters import SHAPES
from sim.training.files.adapter_folder import read_adapter
from sim.training.logs.training_case import Thresholds
from sim.training.vet_adapters import vet_path
from sim.training.vet_results import Vetted

ALL = ("divergence", "overfitting", "underfitting", "domain-shift")
ATTENTION = ["q_proj", "v_proj"]


def vet(
    folder: Path, rows: list[dict[str, Any]], rank: int = 16, targets: object = "all-linear", **rest: Any
) -> Vetted:
    write_config(folder, rank, targets)
    write_log(folder, rows, **rest)
    return vet_path(folder)[0]


def named(one: Vetted) -> dict[str, str]:
    return {finding.mode: finding.confidence for finding in one.findings}


def noisy(curve: Curve, spread: float, seed: int = 1) -> Curve:
    rng = random.Random(seed)
    return lambda at: curve(at) * rng.lognormvariate(0, spread)


HEALTHY = history(falling(3, 0.5), falling(3, 0.6), accuracy=falling(0.1, 0.95), grad_norm=lambda at: 1 + at)


def test_a_healthy_run_passes_without_a_note(tmp_path: Path) -> None:
    one = vet(tmp_path / "a", HEALTHY)
    assert one.findings == ()
    assert one.unjudged == ()
    assert one.passes


# Underfitting

STUCK = history(falling(2.5, 1.2, 30), falling(2.5, 1.3, 30), accuracy=falling(0.2, 0.7, 30))


@pytest.mark.parametrize(
    ("rank", "targets", "confidence"),
    [(1, ATTENTION, "likely"), (4, "all-linear", "likely"), (16, ATTENTION, "possible"), (8, "all-linear", None)],
)
def test_flat_early_at_70_percent_is_underfitting_where_capacity_is_small(
    tmp_path: Path, rank: int, targets: object, confidence: str | None
) -> None:
    one = vet(tmp_path / "a", STUCK, rank, targets)
    assert named(one) == ({"underfitting": confidence} if confidence else {})
    if confidence:
        assert one.findings[0].remedies[-1].targets == ("all-linear" if targets == ATTENTION else None)
        assert any("0.7" in evidence.what for evidence in one.findings[0].evidence)


def test_its_cures_have_parameters_of_the_known_base(tmp_path: Path) -> None:
    one = vet(tmp_path / "a", STUCK, 4, ATTENTION)
    assert (one.current.rank, one.current.targets, one.current.parameters) == (4, ("q", "v"), 4 * 425_984)
    sizes = [(remedy.rank, remedy.targets, remedy.parameters) for remedy in one.findings[0].remedies]
    wide: Targets = "all-linear"
    assert sizes == [(16, None, 16 * 425_984), (32, None, 32 * 425_984), (16, wide, 16 * 2_621_440)]


def test_a_larger_rank_of_the_same_training_that_does_better_makes_it_certain(tmp_path: Path) -> None:
    timed = {"eval_runtime": 1.0, "eval_samples_per_second": 200.0}
    for name, rank, rows in (("r4", 4, STUCK), ("r32", 32, HEALTHY)):
        start = [{"step": step, "loss": 2.9, "epoch": 0.01 * step} for step in (1, 2, 3)] + [*rows, closing()]
        vet(tmp_path / name, [row | (timed if "eval_loss" in row else {}) for row in start], rank)
    found = {one.path.name: named(one) for one in vet_path(tmp_path)}
    assert found == {"r32": {}, "r4": {"underfitting": "certain"}}


# Divergence


def exploding(at: float) -> float:
    return 3 - 2 * at if at < 0.5 else 9.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_ends_as_no_number_is_certain(tmp_path: Path, value: float) -> None:
    rows = history(lambda at: 2.0 if at < 0.6 else value, grad_norm=lambda at: 1.0 if at < 0.5 else 50.0)
    one = vet(tmp_path / "a", rows)
    assert named(one) == {"divergence": "certain"}
    assert one.findings[0].evidence[0].what == "the loss is NaN or infinite from step 240 to the end, step 400"
    assert one.findings[0].evidence[0].steps[0] == 240


def test_a_gradient_norm_that_jumps_tenfold_with_the_loss_is_certain(tmp_path: Path) -> None:
    rows = history(exploding, grad_norm=lambda at: 1.0 if at < 0.5 else 12.0)
    one = vet(tmp_path / "a", rows)
    assert named(one) == {"divergence": "certain"}
    assert any("gradient norm jumped from 1 " in evidence.what for evidence in one.findings[0].evidence)


def spiked(*places: int, losses: int = 40) -> list[dict[str, Any]]:
    """A healthy run whose gradient norm is 1.0, 1.2 just before the first of these entries, and 47.5 in them."""
    norms = {places[0] - 1: 1.2} | dict.fromkeys(places, 47.5)
    return history(
        falling(3, 0.5), falling(3, 0.6), losses=losses, grad_norm=lambda at: norms.get(round(at * losses) - 1, 1.0)
    )


def of_gradients(one: Vetted) -> list[str]:
    return [note for note in one.notes if "gradient" in note]


@pytest.mark.parametrize("places", [(20,), (3,), (39,), (20, 21)])
def test_a_single_spike_of_the_gradient_norm_is_a_note_that_quotes_it(tmp_path: Path, places: tuple[int, ...]) -> None:
    one = vet(tmp_path / "a", spiked(*places))
    assert one.findings == ()
    assert one.unjudged == ()
    (note,) = of_gradients(one)
    step = 10 * places[0]
    assert note.startswith(f"the gradient norm rose from 1.2 (step {step}) to 47.5 (step {step + 10}), 10 times")


def test_a_spike_of_the_gradient_norm_is_no_note_in_warm_up_or_where_norms_are_small(tmp_path: Path) -> None:
    assert of_gradients(vet(tmp_path / "a", spiked(2))) == []
    small = [row | ({"grad_norm": row["grad_norm"] / 50} if "loss" in row else {}) for row in spiked(20)]
    assert of_gradients(vet(tmp_path / "b", small)) == []
    vet(tmp_path / "c", spiked(20))
    (moved,) = vet_path(tmp_path / "c", Thresholds(gradient_jump=48))
    assert of_gradients(moved) == []


@pytest.mark.parametrize(
    ("base", "first"),
    [
        ({"quantization_config": {"load_in_4bit": True}}, "base-8-bit"),
        ({"base_model_name_or_path": "unsloth/llama-3-8b-bnb-4bit"}, "base-8-bit"),
        ({"load_in_8bit": True}, "base-16-bit"),
        ({}, "clip"),
    ],
)
def test_its_cures_follow_the_base(tmp_path: Path, base: dict[str, Any], first: str) -> None:
    write_config(tmp_path, **base)
    write_log(tmp_path, history(lambda at: 2.0 if at < 0.5 else math.nan))
    (one,) = vet_path(tmp_path)
    assert one.findings[0].remedies[0].name == first
    said = "quantisation may be to blame, but the base's number format is unknown; give --base-bits"
    assert (said in one.notes) == (not base)
    (given,) = vet_path(tmp_path, base_bits=16)
    assert given.findings[0].remedies[0].name == "clip"


@pytest.mark.parametrize(
    ("mine", "theirs", "confidence"),
    [(0.8, 0.9, "likely"), (0.86, 0.9, None), (0.9, 0.9, None), (0.95, 0.9, None)],
)
def test_quality_against_the_16_bit_run_by_metric(
    tmp_path: Path, mine: float, theirs: float, confidence: str | None
) -> None:
    for name, accuracy in (("four", mine), ("sixteen", theirs)):
        write_log(tmp_path / name, history(falling(3, 0.5), falling(3, 0.6), accuracy=falling(0.1, accuracy, 20)))
    (one,) = vet_path(tmp_path / "four", reference=tmp_path / "sixteen", base_bits=4)
    assert named(one) == ({"divergence": confidence} if confidence else {})
    if confidence:
        assert one.findings[0].evidence[0].what == "accuracy is 0.8 at the end, 0.9 in the 16-bit run: 11% worse"
        assert one.findings[0].remedies[0].base_quantization == "int8"


def test_quality_against_the_16_bit_run_by_loss_and_its_noise(tmp_path: Path) -> None:
    write_log(tmp_path / "sixteen", history(falling(3, 0.5), falling(3, 0.60)))
    write_log(tmp_path / "four", history(falling(3, 0.5), falling(3, 0.66)))
    assert named(vet_path(tmp_path / "four", reference=tmp_path / "sixteen")[0]) == {"divergence": "likely"}
    wild = noisy(lambda at: 0.66, 0.2)
    write_log(tmp_path / "wild", history(falling(3, 0.5), wild))
    assert named(vet_path(tmp_path / "wild", reference=tmp_path / "sixteen")[0]) == {}


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_a_reference_at_zero_compares_with_nothing(tmp_path: Path, metric: str) -> None:
    evals = [falling(3, 0.6), lambda at: 0.0]
    for name, values in zip(("four", "sixteen"), evals, strict=True):
        rows = (
            history(falling(3, 0.5), values)
            if metric == "loss"
            else history(falling(3, 0.5), falling(3, 0.6), accuracy=values)
        )
        write_log(tmp_path / name, rows)
    (one,) = vet_path(tmp_path / "four", reference=tmp_path / "sixteen", base_bits=4)
    assert any(note.endswith("is zero: quality can't be compared") for note in one.notes)


# Overfitting


def memorising(best: float = 1.5, end: float = 2.2) -> list[dict[str, Any]]:
    return history(
        falling(3, 0.05, 5), lambda at: best + (0.3 - at) * 2 if at < 0.3 else best + (end - best) * (at - 0.3) / 0.7
    )


@pytest.mark.parametrize(
    ("examples", "end", "confidence"),
    [(100, 3.2, "certain"), (100, 1.9, "likely"), (999, 3.2, "certain"), (5000, 3.2, "possible")],
)
def test_a_rising_validation_loss_on_tiny_data(tmp_path: Path, examples: int, end: float, confidence: str) -> None:
    write_log(tmp_path, memorising(end=end))
    (one,) = vet_path(tmp_path, examples=examples)
    assert named(one) == {"overfitting": confidence}
    assert one.findings[0].remedies[0].words == "stop at step 120, or load the best checkpoint at the end"


def test_the_number_of_examples_is_read_from_the_closing_entry_or_bounded(tmp_path: Path) -> None:
    one = vet(tmp_path / "a", [*memorising(), closing(batch=1)])
    assert named(one) == {"overfitting": "likely"}
    assert one.current.examples == 100
    assert named(vet(tmp_path / "b", memorising(), train_batch_size=1)) == {"overfitting": "likely"}
    many = vet(tmp_path / "c", memorising(), train_batch_size=16)
    assert named(many) == {"overfitting": "possible"}
    assert any("--examples" in note for note in many.notes)


# Domain shift

UNMOVED = history(lambda at: 3.0, lambda at: 3.0 - 0.02 * at, accuracy=lambda at: 0.1)


def test_a_loss_that_never_moves_at_a_fair_rank_is_the_base(tmp_path: Path) -> None:
    one = vet(tmp_path / "a", UNMOVED)
    assert named(one) == {"domain-shift": "likely"}
    assert one.findings[0].remedies[-1].full_model


def test_several_ranks_of_one_training_make_it_certain(tmp_path: Path) -> None:
    timed = {"eval_runtime": 1.0, "eval_samples_per_second": 200.0}
    for rank in (2, 16, 64):
        vet(tmp_path / f"r{rank}", [row | (timed if "eval_loss" in row else {}) for row in UNMOVED] + [closing()], rank)
    found = {one.path.name: named(one) for one in vet_path(tmp_path)}
    sure = {"domain-shift": "certain"}
    assert found == {"r16": sure, "r2": {"domain-shift": "possible"}, "r64": sure}


@pytest.mark.parametrize(
    ("rows", "note"),
    [
        (history(lambda at: 3.0, lambda at: 3.0, lr=1e-7), "the learning rate never rose above 1e-07"),
        (history(lambda at: 3.0, lambda at: 3.0, grad_norm=lambda at: 0.0), "the gradient is zero throughout"),
    ],
)
def test_a_loss_that_could_not_move_says_nothing(tmp_path: Path, rows: list[dict[str, Any]], note: str) -> None:
    one = vet(tmp_path / "a", rows)
    assert named(one) == {}
    assert set(one.unjudged) == {"underfitting", "domain-shift"}
    assert any(note in said for said in one.notes)


# Thin evidence and noise


@pytest.mark.parametrize(
    ("rows", "unjudged"),
    [
        ([], ALL),
        ([{"step": 768, "train_loss": 0.97}], ALL),
        (history(falling(3, 1)), ("overfitting", "underfitting", "domain-shift")),
        (history(falling(3, 1), falling(3, 1), evals=3), ("overfitting", "underfitting", "domain-shift")),
        (
            history(falling(3, 1), falling(3, 1), losses=5),
            ("divergence", "overfitting", "underfitting", "domain-shift"),
        ),
        (history(falling(3, 1), falling(3, 1)), ()),
    ],
)
def test_thin_evidence_is_said_and_finds_nothing(
    tmp_path: Path, rows: list[dict[str, Any]], unjudged: tuple[str, ...]
) -> None:
    one = vet(tmp_path / "a", rows, 1, ATTENTION)
    assert one.findings == ()
    assert one.unjudged == unjudged


def test_thresholds_move_the_lines(tmp_path: Path) -> None:
    assert named(vet(tmp_path / "a", STUCK, 8)) == {}
    (one,) = vet_path(tmp_path / "a", Thresholds(small_rank=8))
    assert named(one) == {"underfitting": "likely"}


def changed(rows: list[dict[str, Any]], key: str, value: Callable[[dict[str, Any]], float]) -> list[dict[str, Any]]:
    """Return the rows with a key added or replaced where they are evaluations, or where they have it."""
    return [
        row | ({key: value(row)} if ("eval_loss" in row if key.startswith("eval_") else key in row) else {})
        for row in rows
    ]


def leaves_its_low(at: float) -> float:
    return 3 - 3 * at if at < 0.6 else 2.4


SMALL: dict[str, Any] = {"rank": 1, "targets": ATTENTION}
CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any], dict[str, str], str]] = {
    # what it is: the log, how it is vetted, what is found, and part of a note
    "a good metric at a small rank": (
        history(falling(2.5, 1.2, 30), falling(2.5, 1.3, 30), accuracy=falling(0.2, 0.9, 30)), SMALL, {}, "",
    ),
    "a run that still learns": (
        history(lambda at: 3 - at, lambda at: 3 - at, accuracy=lambda at: 0.2 + at / 3), SMALL, {}, "",
    ),
    "accuracy of tokens is no metric": (
        [{key.replace("eval_acc", "eval_mean_token_acc"): value for key, value in row.items()} for row in STUCK],
        SMALL, {}, "",
    ),
    "a high loss without a metric": (
        history(falling(5, 2.6, 30), falling(5, 2.7, 30)), SMALL, {"underfitting": "possible"}, "",
    ),
    "a metric in percent": (
        changed(STUCK, "eval_accuracy", lambda row: 100 * row["eval_accuracy"]), SMALL, {"underfitting": "likely"}, "",
    ),
    "zeros without a gradient": (history(lambda at: 2.0 if at < 0.5 else 0.0), {}, {"divergence": "certain"}, ""),
    "the zero that the Trainer logs for NaN": (
        history(lambda at: 2.0 if at < 0.5 else 0.0, grad_norm=lambda at: 1.0 if at < 0.5 else math.nan),
        {}, {"divergence": "certain"}, "",
    ),
    "a loss of zero with a gradient": (
        history(lambda at: 2.0 if at < 0.5 else 0.0, grad_norm=lambda at: 1e-3), {}, {}, "",
    ),
    "one skipped step of a scaled fp16 run": (
        history(lambda at: math.nan if at == 0.25 else 2 - at, grad_norm=lambda at: math.inf if at == 0.25 else 1.0),
        {}, {}, "1 loss without a number, but the run went on from there",
    ),
    "a validation loss of NaN alone": (
        history(falling(3, 1), lambda at: math.nan), {}, {}, "examples without a label",
    ),
    "a gradient norm that comes back": (
        history(falling(3, 1), falling(3, 1), grad_norm=lambda at: 30.0 if 0.3 < at < 0.5 else 1.0),
        {}, {}, "the loss came back",
    ),
    "a small peak of the gradient in warm-up": (
        history(falling(3, 1), falling(3, 1), grad_norm=lambda at: 5.0 if at < 0.1 else 1.0), {}, {}, "",
    ),
    "a large peak of the gradient in warm-up": (
        history(falling(3, 1), falling(3, 1), grad_norm=lambda at: 40.0 if at < 0.1 else 1.0), {}, {}, "",
    ),
    "a loss far above its low": (history(exploding, losses=16), {}, {"divergence": "certain"}, ""),
    "a loss that leaves its low": (history(leaves_its_low), {}, {"divergence": "likely"}, ""),
    "a loss that leaves its low, and a validation that does not": (
        history(leaves_its_low, falling(3, 0.9)), {}, {}, "",
    ),
    "weights kept from before": (
        history(lambda at: 2 - at if at < 0.8 else math.nan, falling(2, 1.2)),
        {"best_global_step": 280}, {"divergence": "possible"}, "",
    ),
    "an uptick at the end": (
        history(falling(3, 0.05, 5), lambda at: 3 - 1.5 * at if at < 0.95 else 1.8), {"train_batch_size": 1}, {}, "",
    ),
    "weights of the best step": (
        memorising(), {"train_batch_size": 1, "best_global_step": 120}, {}, "the weights kept are those of step 120",
    ),
    "a rising validation loss with a metric that gains": (
        changed(memorising(), "eval_wer", lambda row: 14 - row["step"] / 100),
        {"train_batch_size": 1}, {}, "wer got better",
    ),
    "training losses of another scale": (
        changed(memorising(), "loss", lambda row: 16 * row["loss"]),
        {"train_batch_size": 1}, {"overfitting": "likely"}, "",
    ),
    "healthy training losses of another scale": (
        changed(HEALTHY, "loss", lambda row: 16 * row["loss"]), {"train_batch_size": 1}, {}, "",
    ),
    "a loss that never moves at a small rank": (
        UNMOVED, {"rank": 2, "targets": ATTENTION}, {"underfitting": "possible"},
        "the loss hardly moved at all: if rank 32 does no better, it is the base",
    ),
    "a base that knows the task already": (
        history(lambda at: 0.2, lambda at: 0.2, accuracy=lambda at: 0.97), {}, {}, "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_course_has_its_finding_or_none(tmp_path: Path, name: str) -> None:
    rows, how, found, note = CASES[name]
    one = vet(tmp_path / "a", rows, **how)
    assert named(one) == found
    assert any(note in said for said in one.notes) or not note


@pytest.mark.parametrize("spread", [0.1, 0.3])
@pytest.mark.parametrize("losses", [12, 60, 600])
@pytest.mark.parametrize("end", [0.3, 2.5])
def test_noise_is_no_failure(tmp_path: Path, spread: float, losses: int, end: float) -> None:
    curves: list[Callable[[float], float]] = [falling(3, end), lambda at: end]
    for seed in range(6):
        for curve in curves:
            rows = history(
                noisy(curve, spread, seed),
                noisy(curve, spread / 8, seed + 50),
                losses=losses,
                steps=6000,
                grad_norm=noisy(lambda at: 1.0, 2 * spread, seed + 99),
                accuracy=lambda at: 0.9,
            )
            assert named(vet(tmp_path / "a", rows)) == {}, (seed, curve)


def test_cures_have_bytes_where_the_weights_are(tmp_path: Path) -> None:
    folder = synthesize(
        tmp_path, SyntheticAdapter(SHAPES["qwen2.5-0.5b"], "Qwen/Qwen2.5-0.5B", 2, ("q", "v"), "bf16"), 1, seed=1
    )[0]
    write_log(folder, STUCK)
    (one,) = vet_path(folder)
    assert one.current.adapter_bytes == one.adapter.bytes == 2 * 2 * 67_584
    sizes = {remedy.name: remedy.adapter_bytes for remedy in one.findings[0].remedies}
    assert sizes["rank-32"] == 32 * 2 * 67_584
    assert sizes["rank-16-all-linear"] == 16 * 2 * 549_888
    wide = synthesize(
        tmp_path, SyntheticAdapter(SHAPES["qwen2.5-0.5b"], "Qwen/Qwen2.5-0.5B", 16, "all-linear", "bf16"), 1, seed=1
    )[0]
    assert vet_path(wide)[0].current is not None
    assert read_adapter(wide).bytes == sizes["rank-16-all-linear"]


def test_an_adapter_of_another_shape_than_its_name_says_has_no_invented_sizes(tmp_path: Path) -> None:
    shape = SHAPES["qwen2.5-0.5b"]
    folder = synthesize(tmp_path, SyntheticAdapter(shape, "meta-llama/Llama-3.1-8B", 2, ("q", "v"), "bf16"), 1, seed=1)[
        0
    ]
    write_log(folder, STUCK)
    remedies = {remedy.name: remedy for remedy in vet_path(folder)[0].findings[0].remedies}
    assert remedies["rank-32"].adapter_bytes == 32 * 2 * 67_584
    assert remedies["rank-16-all-linear"].adapter_bytes is None
