"""Pictures drawn from the requests of real runs: where adapters are, what a request waits for, and a rollout.

``tools/pictures.py`` calls these. Each runs a bundled scenario once and draws what its requests went through, so the
numbers in a picture are those of a run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyBboxPatch
from PIL import Image

import loraplan

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER, PANEL, INK, MUTED, RULE = "#fcfcfa", "#f3f4f1", "#1b1f23", "#5d6570", "#d3d6d0"
BLUE, ORANGE, GREEN, RED = "#3a55c0", "#df7000", "#679e71", "#90294c"
"""Colours of the reports' light theme."""
DPI = 170
COLOURS = 64

SLOTS, COPIES, ADAPTERS = 32, 100, 200
_TIERS_RUN: dict[str, Any] = {
    "cache.host.slots": COPIES,
    "cache.warm": "steady",
    "workload.requests": 12_000,
    "run.replications": 1,
}
_ROLLOUT_AT = 300.0
_ROLLOUT_RUN: dict[str, Any] = {
    "workload.duration": "10 min",
    "rollouts.0.at": "5 min",
    "cache.warm": "steady",
    "run.replications": 1,
}
_BIN_S = 20.0
_BEFORE_AND_AFTER = (120.0, _ROLLOUT_AT - _BIN_S), (_ROLLOUT_AT, _ROLLOUT_AT + 60 - _BIN_S)
"""First and last bins of the minutes before the rollout, and of the one after."""


def tiers(target: Path) -> None:
    """Draw storage, host memory and GPU memory, with vLLM's options and what the requests of a run found where."""
    requests = _requests("quickstart", _TIERS_RUN)
    share = {tier: float((requests["tier"] == tier).mean()) for tier in ("gpu", "host", "storage")}
    load = {tier: float(requests.loc[requests["tier"] == tier, "load_wait_s"].median()) for tier in ("host", "storage")}
    figure, axes = _canvas(9.4, 3.2)
    axes.set(xlim=(0, 94), ylim=(0, 32))
    axes.axis("off")
    boxes = (
        (2, "Storage", f"all {ADAPTERS} adapters", "a folder, a disk, an object store", "storage"),
        (36, "Host memory", f"{COPIES} copies", f"--max-cpu-loras {COPIES}", "host"),
        (70, "GPU memory", f"{SLOTS} slots", f"--max-loras {SLOTS}", "gpu"),
    )
    for x, name, holds, option, tier in boxes:
        axes.add_patch(FancyBboxPatch((x, 9), 20, 17, boxstyle="round,pad=0.6", facecolor=PANEL, edgecolor=RULE))
        axes.text(x + 10, 23, name, ha="center", va="center", weight="bold", size=12)
        axes.text(x + 10, 18.4, holds, ha="center", va="center", size=10.5)
        family = "monospace" if option.startswith("--") else "sans-serif"
        axes.text(
            x + 10,
            13.4,
            option,
            ha="center",
            va="center",
            size=9,
            color=BLUE if "--" in option else MUTED,
            family=family,
        )
        found = f"{_percent(share[tier])} of the requests\nfound their adapter here"
        axes.text(x + 10, 5.6, found, ha="center", va="top", size=9.5, color=MUTED, linespacing=1.4)
    for left, tier, colour in ((23.4, "storage", RED), (57.4, "host", ORANGE)):
        axes.annotate(
            "", (left + 11.2, 17.5), (left, 17.5), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2.2}
        )
        axes.text(left + 5.6, 19.2, _time(load[tier]), ha="center", va="bottom", size=12, weight="bold", color=colour)
        axes.text(left + 5.6, 15.6, "to a slot", ha="center", va="top", size=9, color=MUTED)
    axes.text(
        2, 30.5, "Where an adapter can be, and how long it takes into a slot", size=13, weight="bold", va="center"
    )
    _save(figure, target)


def request_timeline(target: Path) -> None:
    """Draw what three requests of a run waited for: one that hit, and one for each place to load from."""
    requests = _requests("quickstart", _TIERS_RUN)
    figure, axes = _canvas(9.4, 3.5)
    names = {"gpu": "adapter in a slot", "host": "adapter in host memory", "storage": "adapter in storage"}
    phases = (
        ("wait for the next step", MUTED),
        ("load the adapter", RED),
        ("compute the prompt", BLUE),
        ("decode", GREEN),
    )
    end_ms = 0.0
    rows = []
    for tier, name in names.items():
        one = _typical(requests[requests["tier"] == tier])
        edges = np.array(
            [0.0, one["admitted_s"], one["admitted_s"] + one["load_wait_s"], one["first_token_s"], one["finished_s"]]
        )
        edges[1:] -= one["arrival_s"]
        rows.append((name, edges * 1e3, int(one["prompt_tokens"]), int(one["output_tokens"])))
        end_ms = max(end_ms, edges[3] * 1e3)
    limit = end_ms * 1.62
    for row, (name, edges, prompt, output) in enumerate(rows):
        y = -row
        for (_, colour), left, right in zip(phases, edges, edges[1:], strict=False):
            axes.barh(y, min(right, limit) - left, left=left, height=0.42, color=colour)
        axes.text(-limit * 0.015, y, f"{name}\n{prompt} tokens in", ha="right", va="center", size=10, linespacing=1.35)
        axes.text(
            edges[3] + limit * 0.008,
            y + 0.3,
            f"first token {_time(edges[3] / 1e3)}",
            size=9.5,
            weight="bold",
            va="bottom",
        )
        axes.text(
            limit * 0.995,
            y,
            f"{output} tokens out, until {_time(edges[4] / 1e3)}  →",
            ha="right",
            va="center",
            size=9,
            color="white",
        )
    axes.set(xlim=(0, limit), ylim=(-len(rows) + 0.45, 0.75), yticks=[])
    axes.set_xlabel("ms after the request arrived", color=MUTED)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    handles = [mpl.patches.Patch(color=colour, label=label) for label, colour in phases]
    axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=4, frameon=False, fontsize=9.5)
    _save(figure, target)


def rollout(target: Path) -> None:
    """Draw the minutes before and after a rollout: who answered, and how slow the slowest hundredth were."""
    requests = _requests("rollout-blue-green", _ROLLOUT_RUN)
    requests = requests[(requests["status"] == "completed") & requests["arrival_s"].between(120, 540)]
    at = np.floor(requests["arrival_s"] / _BIN_S) * _BIN_S
    figure, (above, below) = _canvas(9.4, 4.6, rows=2)
    new = (requests["version"] > 1).groupby(at).mean()
    minutes = (new.index.to_numpy() - _ROLLOUT_AT) / 60
    above.stackplot(minutes, 1 - new, new, colors=(RULE, BLUE), step="post")
    above.set(yticks=[0, 0.5, 1], yticklabels=["0 %", "50 %", "100 %"], ylim=(0, 1))
    above.set_title("Which version answered", loc="left", size=11.5, weight="bold")
    above.text(minutes[0] + 0.1, 0.5, "old version", va="center", size=10)
    above.text(minutes[-1] - 0.1, 0.5, "new version", va="center", ha="right", size=10, color="white")
    slow = requests.groupby(at)["ttft_s"].quantile(0.99)
    misses = (requests["outcome"] == "miss").groupby(at).mean()
    below.step(minutes, slow * 1e3, where="post", color=ORANGE, lw=2)
    below.set_ylim(0, float(slow.max()) * 1.1e3)
    below.set(xlabel="minutes before and after the rollout", ylabel="ms")
    before, after = (misses[misses.index.to_series().between(*span)].mean() for span in _BEFORE_AND_AFTER)
    below.set_title(
        f"p99 TTFT in every {_BIN_S:.0f} s; misses: {_percent(before)} before, {_percent(after)} in the minute after",
        loc="left",
        size=11.5,
        weight="bold",
    )
    for axes in (above, below):
        axes.axvline(0, color=INK, lw=1, ls=":")
        axes.set_xlim(minutes[0], minutes[-1])
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, target)


def _requests(scenario: str, values: dict[str, Any]) -> pd.DataFrame:
    requests = loraplan.run(scenario, values, jobs=1).requests
    requests = requests[requests["measured"]].copy()
    requests["ttft_s"] = requests["first_token_s"] - requests["arrival_s"]
    return requests


def _typical(requests: pd.DataFrame) -> pd.Series[Any]:
    """Return the request whose TTFT is the median, of those that were admitted soon and have a middling prompt."""
    plain = requests[requests["prompt_tokens"].between(250, 350) & (requests["output_tokens"] > 60)]
    return plain.sort_values("ttft_s").iloc[len(plain) // 2]


def _percent(share: float) -> str:
    return f"{share * 100:.2g} %"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.0f} ms"


def _canvas(width: float, height: float, rows: int = 1) -> tuple[Figure, Any]:
    mpl.use("Agg")
    with mpl.rc_context({"text.color": INK, "axes.labelcolor": INK, "xtick.color": MUTED, "ytick.color": MUTED}):
        figure, axes = plt.subplots(rows, 1, figsize=(width, height), layout="constrained", sharex=rows > 1)
    figure.set_facecolor(PAPER)
    each: Axes
    for each in np.ravel(axes):
        each.set_facecolor(PAPER)
    return figure, axes


def _save(figure: Figure, target: Path) -> None:
    figure.savefig(target, dpi=DPI, facecolor=PAPER, metadata={"Software": None})
    plt.close(figure)
    with Image.open(target) as image:
        image.convert("RGB").quantize(COLOURS).save(target, optimize=True)
