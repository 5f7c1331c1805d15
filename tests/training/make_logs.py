"""Train adapters that fail, and healthy twins, and keep their logs: run ``python tests/training/make_logs.py``.

Without arguments it writes the fixtures below ``tests/training/fixtures`` again (seed 0). With ``--seeds N --out DIR``
it trains every recipe with N seeds into another folder; ``tests/training/confusion.py DIR`` counts what vet says.
Weights aren't kept. Logs differ in the last digits between versions of torch.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from tiny_lab import Base, Recipe, train

FIXTURES = Path(__file__).resolve().parent / "fixtures"
FREE = {"max_grad_norm": 1e9}
"""Gradients aren't clipped, but their norm is logged."""
RISING = {"lr_scheduler_type": "constant_with_warmup"}

HEALTHY = (
    Recipe("constant"),
    Recipe("cosine", lr=8e-3, arguments={"lr_scheduler_type": "cosine", "warmup_steps": 30}),
    Recipe("linear-long-warmup", lr=8e-3, arguments={"lr_scheduler_type": "linear", "warmup_steps": 100}),
    Recipe("few-evals", evals=3),
    Recipe("no-evals", evals=0),
    Recipe("early-stop", examples=400, steps=900, evals=45, patience=3),
    Recipe("small-data", examples=400, steps=200),
    Recipe("high-rank", rank=64, lr=2e-3),
    Recipe("resumed", resumed=True),
    Recipe("rank-4-enough", task="rows", rank=4),
    Recipe("attention-enough", task="rows", rank=16, targets="q,k,v,o", steps=500),
    Recipe("already-known", task="known", lr=1e-3),
    Recipe("noisy-labels", noise=0.25),
    Recipe("four-bit", base_bits=4),
    Recipe("tiny-batch", batch=4, steps=700, lr=2e-3),
    Recipe("accumulated", batch=8, arguments={"gradient_accumulation_steps": 4}),
    Recipe("regularised", dropout=0.1, arguments={"weight_decay": 0.05}),
    Recipe("cut-short", rank=4, steps=60),
    Recipe("cut-very-short", rank=4, steps=40),
    Recipe("cut-half-way", rank=4, steps=120),
    Recipe("cut-short-cosine", rank=4, steps=120, lr=8e-3, arguments={"lr_scheduler_type": "cosine"}),
    Recipe("cut-short-attention", rank=4, targets="q,v", steps=120),
    Recipe("hot", lr=8e-3, arguments=RISING | {"warmup_steps": 20}),
    Recipe("unclipped", arguments=FREE),
)
FAILING = (
    Recipe(
        "rank-1-linear",
        "underfitting",
        rank=1,
        targets="q,v",
        steps=800,
        lr=8e-3,
        arguments={"lr_scheduler_type": "linear"},
    ),
    Recipe(
        "rank-1-cosine",
        "underfitting",
        rank=1,
        targets="q,v",
        steps=800,
        lr=1e-2,
        arguments={"lr_scheduler_type": "cosine", "warmup_steps": 30},
    ),
    Recipe(
        "rank-2-attention",
        "underfitting",
        rank=2,
        targets="q,v",
        steps=1000,
        lr=8e-3,
        arguments={"lr_scheduler_type": "cosine", "warmup_steps": 30},
    ),
    Recipe("explodes", "divergence", task="rows", lr=0.2, base_bits=4, arguments=FREE | RISING | {"warmup_steps": 200}),
    Recipe(
        "explodes-late", "divergence", task="rows", lr=0.5, base_bits=4, arguments=FREE | RISING | {"warmup_steps": 300}
    ),
    Recipe("explodes-at-once", "divergence", lr=1.0, base_bits=4, arguments=FREE),
    Recipe("explodes-sgd", "divergence", task="rows", lr=1e5, base_bits=4, arguments=FREE | {"optim": "sgd"}),
    Recipe("no-number", "divergence", lr=1e25, base_bits=4, arguments=FREE),
    Recipe("no-number-filtered", "divergence", lr=1e25, base_bits=4, arguments=FREE | {"logging_nan_inf_filter": True}),
    Recipe("100-examples", "overfitting", examples=100, steps=700, noise=0.2),
    Recipe("100-examples-rank-64", "overfitting", examples=100, steps=700, rank=64, noise=0.2),
    Recipe(
        "100-examples-cosine",
        "overfitting",
        examples=100,
        steps=700,
        noise=0.2,
        lr=6e-3,
        arguments={"lr_scheduler_type": "cosine", "warmup_steps": 20},
    ),
    Recipe("unknown-words", "domain-shift", task="unknown"),
    Recipe("unknown-words-rank-64", "domain-shift", task="unknown", rank=64, lr=2e-3),
    Recipe("parity", "domain-shift", task="parity", rank=32),
)
BORDERLINE = (Recipe("100-examples-clean", "overfitting", examples=100, steps=700),)
"""Learned by heart, but the validation loss stands still and three quarters of the answers are right: no fixture."""
RECIPES = HEALTHY + FAILING


def keep(folder: Path, recipe: Recipe, seed: int, target: Path) -> None:
    """Copy the log and a short configuration; write how it was made."""
    target.mkdir(parents=True, exist_ok=True)
    state = json.loads((folder / "trainer_state.json").read_text())
    state.pop("stateful_callbacks", None)
    rows = ",\n".join(" " + json.dumps(_short(entry)) for entry in state.pop("log_history"))
    head = json.dumps(state, indent=1).rstrip("}\n")
    (target / "trainer_state.json").write_text(f'{head},\n "log_history": [\n{rows}\n ]\n}}\n')
    config = json.loads((folder / "adapter_config.json").read_text())
    kept = (
        "peft_type",
        "r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "use_dora",
        "use_rslora",
        "modules_to_save",
    )
    short = {"base_model_name_or_path": "tiny"} | {key: config[key] for key in kept if key in config}
    short["target_modules"] = sorted(short["target_modules"])
    if recipe.base_bits == 4:
        short["quantization_config"] = {"load_in_4bit": True}
    (target / "adapter_config.json").write_text(json.dumps(short, indent=1) + "\n")
    made = {"command": "python tests/training/make_logs.py", "recipe": recipe.name, "seed": seed, "mode": recipe.mode}
    (target / "made.json").write_text(json.dumps(made) + "\n")


def _short(entry: dict[str, object]) -> dict[str, object]:
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in entry.items()}


def main() -> None:
    """Train every recipe, or those named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--out", type=Path, default=FIXTURES)
    given = parser.parse_args()
    for seed in range(given.first, given.first + given.seeds):
        base = Base.made(seed)
        for recipe in RECIPES if given.out == FIXTURES else RECIPES + BORDERLINE:
            if given.names and recipe.name not in given.names:
                continue
            target = given.out / (recipe.name if given.out == FIXTURES else f"{recipe.name}/seed-{seed}")
            if given.out != FIXTURES and target.exists():
                continue  # a stopped run resumes
            work = Path(tempfile.mkdtemp())
            try:
                keep(train(base, recipe, seed, work), recipe, seed, target)
                print(target, flush=True)
            finally:
                shutil.rmtree(work)


if __name__ == "__main__":
    main()
