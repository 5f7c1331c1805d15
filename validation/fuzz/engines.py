"""Draw settings, let a real engine run with them, and replay what it did: ``python -m validation.fuzz.engines pd …``.

``--python`` is that of an environment with vLLM's CPU build (``make vllm-env``) or SGLang, ``--tools`` the folder of
the recorders. What an engine refuses, or doesn't survive, is not counted. Records that differ stay in ``--out``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from random import Random

from sim.errors import InputError
from sim.studies.fidelity.sglang_record import read_any_record, replay_any_record

RECORDERS = {
    "vllm": "record_vllm.py",
    "offload": "record_vllm_offload.py",
    "pd": "record_vllm_pd.py",
    "sglang": "record_sglang.py",
}
LIMIT_S = 200
"""Loops of engines that stopped for good do not end by themselves."""


class Draw:
    """Arguments of one recording."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.arguments: list[str] = []

    def often(self, share: float) -> bool:
        return self._random.random() < share

    def add(self, name: str, *values: object, share: float = 1.0) -> None:
        """Add an option, with one of its values if it has any, in this share of the recordings."""
        if self.often(share):
            self.arguments += [f"--{name}", *([str(self._random.choice(values))] if values else [])]


def arguments(kind: str, seed: int) -> list[str]:
    """Return the recorder's arguments; everything that two engines have goes by the names of its option."""
    draw = Draw(Random(f"{kind} {seed}"))
    draw.add("seed", seed)
    draw.add("requests", 40, 60, 90)
    draw.add("slots", 2, 3, 4, 8)
    draw.add("adapters", 4, 8, 16, 32)
    draw.add("zipf", 0, 0.8, 1.2)
    draw.add("prompt", "5:25", "20:80", "40:240")
    draw.add("output", "1:20", "5:40", "20:80")
    draw.add("base-share", 0.3, share=0.3)
    (_sglang if kind == "sglang" else _vllm)(draw, kind)
    return draw.arguments


def _vllm(draw: Draw, kind: str) -> None:
    draw.add("max-num-seqs", 4, 8, 16, 32)
    draw.add("max-num-batched-tokens", 64, 128, 512, 2048)
    draw.add("async", share=0.5)
    if kind != "vllm" or draw.often(0.6):
        if draw.often(0.4):
            draw.add("sessions", 10, 20)
        else:
            draw.add("texts", 5, share=0.5)
            draw.add("shared-prefix", "16:64", share=0.5)
        draw.add("prefix-caching", share=float(kind == "vllm"))
    if kind != "pd":
        draw.add("kv-blocks", 36, 50, 80, share=0.5 if kind == "vllm" else 1.0)
        draw.add("host-slots", 8, 16, 32, share=0.3)
    if kind == "vllm":
        draw.add("block-size", 32, 64)
        draw.add("rate", 20, 100, share=0.4)
        draw.add("priorities", 3, share=0.25)
        draw.add("stops", share=0.25)
    elif kind == "offload":
        draw.add("host-blocks", 30, 100, 300)
        draw.add("policy", "lru", "arc")
        draw.add("load-steps", 1, 2, 4)
        draw.add("store-steps", 1, 2, 4)
        draw.add("answers", share=0.5)
        draw.add("store-from", 1, 2, share=0.3)
    else:
        draw.add("gap", 0, 0.5, 2, 5)
        draw.add("transfer-steps", 1, 3, 8)
        draw.add("transfer-rate", 0, 1, 2)
        for side in "pd":
            draw.add(f"{side}-kv-blocks", 36, 50, 80, share=0.4)
        draw.add("d-slots", 1, 2, 4, share=0.4)
        draw.add("d-max-num-seqs", 4, 12, share=0.4)
        if draw.often(0.3):
            draw.add("fail-every", 3, 5)
            draw.add("failure", "recompute", "fail")
        draw.add("abort-every", 4, share=0.25)


def _sglang(draw: Draw, kind: str) -> None:
    draw.add("running", 4, 8, 16, 32)
    draw.add("chunk", 64, 128, 512, 2048)
    draw.add("eviction", "lru", "fifo")
    draw.add("pinned", 1, share=0.2)
    draw.add("kv-tokens", 800, 1500, 3000, share=0.5)
    if draw.often(0.6):
        draw.add("radix")
        draw.add("policy", "lpm", share=0.3)
        if draw.often(0.4):
            draw.add("sessions", 6, 12)
        else:
            draw.add("texts", 5)
            draw.add("shared-prefix", "16:64")
    draw.add("page", 16, share=0.3)
    draw.add("limit", "0:100", share=0.3)
    draw.add("per-step", 0.1, 0.5, 1, share=0.5)
    draw.add("mixed", share=0.3)
    draw.add("overlap-schedule", share=0.6)
    draw.add("conservativeness", 0.3, 0.7, share=0.3)
    draw.add("drain", 10, 50, share=0.2)
    draw.add("ignore-eos", share=0.1)


def main() -> None:
    """Record and replay; exit with 1 if a replay differs, or none was made."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=RECORDERS)
    parser.add_argument("--python", required=True)
    parser.add_argument("--tools", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="seed of the first one")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    met = differs = 0
    for seed in range(asked.first, asked.first + asked.cases):
        record, options = asked.out / f"{asked.kind}-{seed}.json.gz", arguments(asked.kind, seed)
        record.unlink(missing_ok=True)
        command = [asked.python, str(asked.tools / RECORDERS[asked.kind]), str(record), *options]
        with (asked.out / f"{asked.kind}-{seed}.log").open("w") as log:
            # Engines leave processes behind: they end with their group.
            running = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env={**os.environ, "PYTHONHASHSEED": "0"}
            )
            try:
                running.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, 9)
                running.wait()
        try:
            result = replay_any_record(read_any_record(record))
        except InputError as error:  # no file, or a torn one
            print(f"{asked.kind} {seed}: {error}; see {log.name}", flush=True)
            continue
        said = result.first_difference or f"{result.steps} steps met"
        print(f"{asked.kind} {seed}: {said}  ({' '.join(options)})", flush=True)
        differs += result.first_difference is not None
        met += result.first_difference is None
        if not result.first_difference:
            record.unlink()
    print(f"{met} records met, {differs} differ, {asked.cases - met - differs} not made")
    sys.exit(differs > 0 or not met)


if __name__ == "__main__":
    main()
