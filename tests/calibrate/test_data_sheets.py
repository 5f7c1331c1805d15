"""Profiles from data sheets: by bundled profiles of cards with kernel tables, and by hand. None needs the tables."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from command_line import CommandLine

from calibrate.fit.anchor import LEFT
from calibrate.kernels.base_models import base_model_of
from calibrate.kernels.cards import ALL, CARDS, card_of, figures_of
from calibrate.kernels.kernel_tables import Deployment
from calibrate.kernels.profile_from_kernels import build_command, build_profile
from calibrate.kernels.roofline import (
    BANDWIDTH,
    FLOPS,
    Efficiencies,
    Roofline,
    efficiencies_of,
    read_efficiencies,
    spread_of,
)
from calibrate.kernels.surrogate import predict
from sim.errors import InputError
from sim.spec.profile import Profile, load_profile
from validation.published.data_sheets import LeftOut, coverage, fit, off, shelf

PERFECT = Efficiencies(1, 1, 1, 1, 0, 0, 0, 1, 0)


def deployment(gpu: str, model: str, gpus: int = 1) -> Deployment:
    return Deployment(card_of(gpu), base_model_of(model), tensor_parallel=gpus)


def test_cards_that_are_left_out_are_met_within_the_bars() -> None:
    """Median errors of 20 % for decode steps and 25 % for steps with prompts, and intervals that cover 85 to 95 %."""
    fitted = read_efficiencies()
    left_out = [LeftOut(row, fitted.of(tuple(name for name in CARDS if name != row.card))) for row in shelf()]
    assert {each.row.card for each in left_out} == CARDS.keys()
    for card in CARDS:
        some = [each for each in left_out if each.row.card == card]
        assert off(some, decoding=True)[0] < 0.13, card
        assert off(some, decoding=False)[0] < 0.13, card
    assert off(left_out, decoding=True)[0] < 0.06
    assert off(left_out, decoding=False)[0] < 0.1
    for decoding in (True, False):
        assert 0.85 <= coverage(left_out, fitted.spread, decoding=decoding) <= 0.95
    # Once one step is known, a third of the spread is left for the others of its kind: what an anchor leaves.
    for known, name in (((16, 1024, 0, 0, 0), BANDWIDTH), ((0, 0, 1, 1024, 0), FLOPS)):
        left = [(each.errors - each.errors[(each.row.steps == known).all(axis=1)]) for each in left_out]
        others = [errors[each.row.decoding == (name == BANDWIDTH)] for each, errors in zip(left_out, left, strict=True)]
        spread = np.mean([np.hypot(fitted.spread[name], each.row.overhead.spread) for each in left_out])
        assert np.sqrt(np.mean(np.concatenate(others) ** 2)) / spread == pytest.approx(LEFT, abs=0.03)


def test_a_built_profile_is_near_the_bundled_one() -> None:
    """Whole, with LoRA's terms: the same that a user compares."""
    h100 = ALL["h100-80gb"]
    by_sheet = Deployment(card_of("h100", flops=h100.flops), base_model_of("llama-3.1-8b"))
    built, (bundled, _) = build_profile(by_sheet, "").profile, load_profile("h100-80gb/llama-3.1-8b/vllm-0.24.0")
    assert (built.status, built.step.lora, built.memory) == ("assumed", bundled.step.lora, bundled.memory)
    steps = [(1, 300, 0, 0, 0), (32, 800, 0, 0, 0), (128, 2000, 0, 0, 0), (0, 0, 1, 1024, 0), (16, 500, 1, 512, 512)]
    ratios = np.divide(predict(built.step, steps, 8192), predict(bundled.step, steps, 8192))
    assert np.abs(ratios - 1).max() < 0.15


@pytest.mark.slow
def test_the_file_is_what_the_program_fits() -> None:
    known, fitted = read_efficiencies(), fit(shelf())
    assert fitted.common == pytest.approx(known.common, rel=0.02)
    for name, shares in known.shares.items():
        assert fitted.shares[name] == pytest.approx(shares, rel=0.02)


def test_a_perfect_card_takes_what_its_data_sheet_says() -> None:
    """A10G: 6.48 billion linear parameters of Llama-2-7B and its head, 600 GB/s, 70 TFLOP/s."""
    model = base_model_of("llama-2-7b")
    kernels = Roofline(deployment("a10g", "llama-2-7b"), PERFECT)
    linear, head = 32 * (4 * 4096**2 + 3 * 4096 * 11008), 32000 * 4096
    assert model.parameters()[0] == linear
    assert kernels.step_s(1, 0) == pytest.approx(2 * (linear + head) / 600e9, rel=0.01)
    kv_token = 2 * 32 * 32 * 128 * 2
    assert kernels.step_s(8, 1999) - kernels.step_s(8, 999) == pytest.approx(8 * 1000 * kv_token / 600e9)
    prefill = 2 * linear * 4096 / 70e12 + 4 * 32 * 4096 * 4096 * 4097 / 2 / 70e12
    assert kernels.step_s(0, 0, 1, 4096) == pytest.approx(prefill, rel=0.06), "and norms"
    steps = np.array([(8, 100, 2, 64, 0), (0, 0, 1, 512, 1024), (3, 5, 0, 0, 0)])
    assert kernels.seconds(steps).tolist() == [pytest.approx(kernels.step_s(*step)) for step in steps.tolist()]


def test_several_gpus_share_the_work_and_sum_up_over_their_link() -> None:
    one, two = (Roofline(deployment("a10g", "llama-2-7b", gpus), PERFECT).step_s(1, 0) for gpus in (1, 2))
    assert two == pytest.approx(one / 2, rel=0.01)
    prompt = (0, 0, 1, 4096)
    summed = 2 * 32 * 4096 * 2 * 4096 / 32e9
    assert Roofline(deployment("a10g", "llama-2-7b", 2), PERFECT).step_s(*prompt) > summed


def test_a_tenth_more_bandwidth_is_not_a_tenth_more_flops() -> None:
    wanted, reached = deployment("l4", "llama-3.1-8b"), efficiencies_of(card_of("l4"))
    faster = Roofline(wanted, reached.times({BANDWIDTH: 1.1, FLOPS: 1.0}))
    same = Roofline(wanted, reached)
    assert faster.step_s(8, 1000) / same.step_s(8, 1000) == pytest.approx(1 / 1.1, abs=0.02)
    assert faster.step_s(0, 0, 1, 8000) / same.step_s(0, 0, 1, 8000) > 0.97


def test_a_profile_of_a_data_sheet_is_assumed_and_says_how_far_off() -> None:
    wanted = deployment("a10g", "llama-2-7b")
    profile = build_profile(wanted, shlex.join(build_command(wanted))).profile
    assert (profile.name, profile.status, profile.device) == (
        "a10g/llama-2-7b/vllm-data-sheet",
        "assumed",
        "NVIDIA A10G",
    )
    assert profile.provenance.command == "loraplan profiles build --gpu a10g --model llama-2-7b"
    assert read_efficiencies().error in profile.error
    assert "published by AWS" in profile.sources["step"]
    decode, prompt = (16, 500, 0, 0, 0), (0, 0, 1, 2048, 0)
    for step in (decode, prompt):
        own = predict(profile.step, [step], 8192)[0]
        drawn = [predict(draw.step, [step], 8192)[0] for draw in profile.draws]
        assert min(drawn) < 0.87 * own < own < 1.15 * own < max(drawn), "a wide interval on both sides"
    assert len(profile.draws) == 8


def test_the_interval_is_as_wide_as_what_is_known_of_a_card() -> None:
    on_tables, by_sheet, other_maker = (spread_of(card_of(gpu))[BANDWIDTH] for gpu in ("h200", "h20", "mi300x"))
    assert on_tables <= by_sheet < other_maker == 2 * by_sheet


@pytest.mark.parametrize("name", [name for name, card in ALL.items() if not card.system])
def test_every_card_of_a_data_sheet_has_figures_of_its_maker(name: str) -> None:
    card = ALL[name]
    assert card.source.startswith(("NVIDIA", "AMD"))
    assert 0.25e12 < card.bandwidth_bytes_per_s < 8e12
    assert 5e13 < card.flops < 2e15
    assert efficiencies_of(card) == read_efficiencies().of(tuple(CARDS))


def test_a_card_of_which_figures_are_given_goes_by_these() -> None:
    same = card_of("h200", bandwidth_bytes_per_s=4e12)
    assert (same.system, same.flops, same.bandwidth_bytes_per_s) == ("", ALL["h200"].flops, 4e12)
    for typed in ("48GB", "46068MiB"):
        card = card_of("x", **figures_of(typed, "960GB/s", "200T"))
        assert typed in build_command(Deployment(card, base_model_of("llama-3.1-8b")))
    mine = card_of("My Card_2", **figures_of("48 GiB", "960 GB/s", "200TFLOPS"))
    assert (mine.name, mine.memory_bytes, mine.flops, mine.batch_sequences) == ("my-card-2", 48 << 30, 200e12, 256)
    command = build_command(Deployment(mine, base_model_of("llama-3.1-8b")))
    given = dict(zip(command[3::2], command[4::2], strict=True))
    assert (
        card_of(given["--gpu"], **figures_of(*(given[f"--{key}"] for key in ("memory", "bandwidth", "flops")))) == mine
    )


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            partial(figures_of, "24", None, None),
            "--memory: not a figure of a GPU's data sheet (got 24, allowed: such as",
        ),
        (partial(figures_of, None, "600", None), "--bandwidth: not a figure of a GPU's data sheet (got 600"),
        (
            partial(figures_of, None, None, "70"),
            "--flops: not a figure of a GPU's data sheet (got 70, allowed: such as 70T",
        ),
        (partial(figures_of, None, None, "1.2.3T"), "--flops: not a figure"),
        (partial(card_of, "mine", 10**10), "--bandwidth: a GPU that loraplan doesn't know needs all three figures"),
        (
            lambda: Roofline(deployment("a10g", "gpt-oss-120b"), PERFECT),
            "--model: profiles from data sheets are of dense models with 16-bit weights: how fast kernels of mixtures",
        ),
        (
            lambda: Roofline(replace(deployment("a10g", "llama-2-7b"), weights="int4"), PERFECT),
            "--weights: profiles from data sheets are of dense models with 16-bit weights: how fast kernels of int4",
        ),
    ],
)
def test_what_a_data_sheet_does_not_say_is_refused(asked: Callable[[], object], said: str) -> None:
    with pytest.raises(InputError) as refused:
        asked()
    assert str(refused.value).startswith(said)


def test_a_profile_of_a_data_sheet_runs(tmp_path: Path, loraplan: CommandLine) -> None:
    build = ("profiles", "build", "--gpu", "rtx4090", "--model", "llama-3.1-8b", "--out", "mine.json", "--json")
    built = json.loads(loraplan(*build).out)
    assert (built["status"], built["name"]) == ("assumed", "rtx-4090/llama-3.1-8b/vllm-data-sheet")
    assert isinstance(load_profile(str(tmp_path / "mine.json"))[0], Profile)
    small = ("--set", "workload.requests=200", "--set", "run.replications=2", "--quiet")
    ended = loraplan.succeeds("run", "quickstart", "--all", "--set", "fleet.profile=./mine.json", *small)
    assert "assumed" in ended.out
