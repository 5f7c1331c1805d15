"""Build the bundled profiles that come from kernel tables: ``python tools/profile_shelf.py``.

Needs the extra ``kernels``; takes about two minutes.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from calibrate.kernels.base_models import base_model_of  # noqa: E402
from calibrate.kernels.cards import card_of  # noqa: E402
from calibrate.kernels.kernel_tables import Deployment  # noqa: E402
from calibrate.kernels.profile_from_kernels import build_command, build_profile  # noqa: E402
from sim.results.run_directory.result_files import write_json  # noqa: E402

FOLDER = ROOT / "scenarios" / "profiles"
CARDS = ("h100-80gb", "h200", "b200", "a100-80gb", "l40s")
SMALL = ("llama-3.1-8b", "qwen2.5-7b", "qwen2.5-14b", "mistral-7b", "qwen3-8b", "qwen3-14b")
LARGE_CARDS = ("h100-80gb", "h200", "b200")
LARGE = [(card, model, gpus) for card in LARGE_CARDS for model in ("llama-3.1-70b", "qwen3-32b") for gpus in (2, 4)]
MIXTURE = ("h200", "gpt-oss-120b", "mxfp4")
TOO_LARGE = ("h100-80gb", "llama-3.1-70b", 2)
"""Its weights leave no room for a KV cache."""


def shelf() -> list[Deployment]:
    """Return the deployments that profiles are bundled for: vLLM with 16-bit weights, and one mixture of experts."""
    small = [Deployment(card_of(card), base_model_of(model)) for card in CARDS for model in SMALL]
    large = [
        Deployment(card_of(card), base_model_of(model), tensor_parallel=gpus)
        for card, model, gpus in LARGE
        if (card, model, gpus) != TOO_LARGE
    ]
    card, model, weights = MIXTURE
    return [*small, *large, Deployment(card_of(card), base_model_of(model), weights=weights)]


def main() -> int:
    """Build every profile."""
    for deployment in shelf():
        profile = build_profile(deployment, shlex.join(build_command(deployment))).profile
        path = FOLDER / f"{profile.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, profile.model_dump(mode="json"), indent=None)
        print(f"{profile.name}: {profile.error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
