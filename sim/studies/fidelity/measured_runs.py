"""Measured runs of a real server: a table with a row per served hour, and each row as a scenario.

The columns are those of ``vllm_h100/runs.csv`` (docs/validation.md); lengths come as two histograms in a JSON file.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from sim.errors import InputError
from sim.reading import MANIFEST_BYTES, open_text, read_regular
from sim.results.records import Recording
from sim.spec.scenario import Scenario
from sim.spec.sections.laws import HistogramTokens

T = TypeVar("T")

# Tables of measured runs as text: their columns, and cells that are checked when they are read.


@dataclass(frozen=True, slots=True)
class RunCells:
    """The cells of one row.

    :ivar file, line: where the row is, for error messages.
    """

    row: Mapping[str, str]
    file: str
    line: int

    def parsed(self, column: str, parse: Callable[[str], Any], allowed: str) -> Any:
        """Return a cell as ``parse`` reads it.

        :raises InputError: with file, line and column, where ``parse`` raises ValueError or KeyError.
        """
        text = self.row[column] or ""
        try:
            return parse(text)
        except (ValueError, KeyError):
            raise self.error("not a value", column, text, allowed) from None

    def named(self, column: str, find: Callable[[str], T | None], allowed: str) -> T:
        """Return what a cell names.

        :raises InputError: where ``find`` returns None.
        """
        text = self.row[column] or ""
        found = find(text)
        if found is None:
            raise self.error("not a value", column, text, allowed)
        return found

    def count(self, column: str) -> int:
        """Return a whole number, 1 or more."""
        return int(self.parsed(column, positive_int, "a whole number, 1 or more"))

    def number(self, column: str, empty: float | None = None) -> float:
        """Return a number, 0 or more.

        :param empty: what an empty cell stands for; None: it is an error.
        """
        if empty is not None and not self.row[column]:
            return empty
        return float(self.parsed(column, non_negative, "a number, 0 or more"))

    def seconds(self, column: str) -> float:
        """Return how long a run took, 1 s or more."""
        return float(self.parsed(column, _duration, "seconds, 1 to 10,000,000"))

    def error(self, problem: str, column: str, got: str, allowed: str) -> InputError:
        """Return the error of one cell."""
        return InputError(problem, file=self.file, line=self.line, key=column, got=got, allowed=allowed)


@dataclass(frozen=True, slots=True)
class TableOfRuns:
    """A table whose cells have not been read yet."""

    file: str
    columns: Sequence[str]
    rows: Sequence[RunCells]

    def require(self, columns: Sequence[str]) -> None:
        """Refuse a table without rows or without one of these columns.

        :raises InputError: naming the missing columns.
        """
        missing = [name for name in columns if name not in self.columns]
        if missing:
            raise InputError(
                "columns are missing",
                file=self.file,
                line=1,
                got=", ".join(missing),
                hint=f"a table of measured runs has the columns {', '.join(columns)}",
            )
        if not self.rows:
            raise InputError("the table has no rows", file=self.file)


def read_table(path: Path) -> TableOfRuns:
    """Read a table of measured runs.

    :raises InputError: where the file can't be read.
    """
    file = str(path)
    try:
        with open_text(path) as lines:
            reader = csv.DictReader(lines)
            columns = tuple(reader.fieldnames or ())
            return TableOfRuns(file, columns, [RunCells(row, file, reader.line_num) for row in reader])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        got = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError("the table can't be read", file=file, got=got) from None


def positive_int(text: str) -> int:
    """Return a whole number, 1 or more.

    :raises ValueError: for any other text.
    """
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def non_negative(text: str) -> float:
    """Return a finite number, 0 or more.

    :raises ValueError: for any other text.
    """
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError
    return value


def _duration(text: str) -> float:
    value = float(text)
    if not 1 <= value <= 1e7:
        raise ValueError
    return value


METRICS = ("req_per_s", "tpot_mean_ms", "itl_mean_ms", "itl_p50_ms", "ttft_p50_ms", "ttft_p99_ms", "running_mean")
"""What is compared, as the columns are called."""

MORE_METRICS = ("output_tok_per_s", "ttft_mean_ms")
"""Compared as well, where the table has them."""

COLUMNS = (
    "model",
    "workload_group",
    "case",
    "gpu_slots",
    "host_slots",
    "adapters",
    "max_lora_rank",
    "adapter_rank_mix",
    "adapter_rates_rps",
    "adapters_per_rate",
    "duration_s",
    "waiting_mean",
    "kv_usage_mean",
    *METRICS,
)

MODELS = {"llama-3.1-8b-instruct": "llama-3.1-8b", "qwen-2.5-7b-instruct": "qwen2.5-7b"}
"""Base models by the names that tables use."""

TARGETS: dict[str, Any] = {"qwen2.5-7b": ["q", "v"]}
"""What the adapters of a base model target, where it isn't all linear modules: inferred from the times of their copies
to the GPU, which fit 2 of 7 modules (docs/validation.md)."""

MEAN_TOKENS = {"llama-3.1-8b": (223.5, 195.0), "qwen2.5-7b": (223.5, 191.8)}
"""Mean prompt and output tokens of completed requests, from the tables' throughputs."""

LENGTH_CORRELATION = -0.35
"""Correlation of the normal scores of prompt and output length. The runs show it where their KV cache is used: 360 KV
tokens for each running sequence, while independent lengths would give 425 (docs/validation.md)."""

MOST_RPS = 1e6
"""More requests per second can't be simulated."""

LIGHT_RPS = 30
SEEDS_LIGHT, SEEDS = 3, 1
"""Up to ``LIGHT_RPS`` the randomness of arrivals is as large as the error, so predictions are means over seeds."""

UNSATURATED, SLOT_LIMITED, OTHER_LIMITED = "unsaturated", "slot-limited", "kv-or-compute-limited"
REGIMES = (UNSATURATED, SLOT_LIMITED, OTHER_LIMITED)


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """One row.

    :cvar compared: the metrics that predictions are compared by; ``regimes``: what may limit a run.
    :cvar engine, front_end: what served it; ``profile``: the bundled profile with its costs, for a base model.
    :cvar sampling: how often a run is simulated, in words.
    :ivar file, line: where it was read, for error messages.
    :ivar rates: (requests per second of one adapter, how many adapters have this rate).
    :ivar measured: the compared metrics, in the table's units; NaN where a cell is empty.
    """

    compared: ClassVar[tuple[str, ...]] = METRICS
    regimes: ClassVar[tuple[str, ...]] = REGIMES
    engine: ClassVar[str] = "vllm-0.8"
    front_end: ClassVar[str] = "vllm-0.8-scraped"
    profile: ClassVar[str] = "h100-64gb/{model}/vllm-0.8.5"
    sampling: ClassVar[str] = f"up to {LIGHT_RPS} requests/s thrice"

    line: int
    model: str
    workload_group: str
    case: str
    gpu_slots: int
    host_slots: int
    adapters: int
    max_lora_rank: int
    ranks: tuple[int, ...]
    rates: tuple[tuple[float, int], ...]
    duration_s: float
    waiting_mean: float
    kv_usage_mean: float
    measured: Mapping[str, float]
    file: str = ""

    @property
    def name(self) -> str:
        """The run's name: model, workload group and case."""
        return f"{self.model}/{self.workload_group}/{self.case}"

    @property
    def group(self) -> str:
        """What runs have in common that differ in slots alone."""
        return f"{self.model}/{self.workload_group}/{self.rates}/{self.ranks}"

    @property
    def label(self) -> str:
        """The workload in words."""
        return f"{self.model}, {self.adapters} adapters, {self.offered_rps:.3g} requests/s"

    @property
    def offered_rps(self) -> float:
        """Requests per second of all adapters together."""
        return sum(rate * count for rate, count in self.rates)

    @property
    def simulated(self) -> tuple[object, ...]:
        """What a simulation of the run depends on, besides lengths and profile."""
        return self.name, self.gpu_slots, self.host_slots, self.ranks, self.rates, self.duration_s

    def usable(self, metric: str) -> bool:
        """Return whether a metric was measured, and measured well enough to be compared."""
        if metric == "itl_p50_ms" and not self.itl_usable:
            return False
        return self.measured.get(metric, 0.0) > 0

    @property
    def itl_usable(self) -> bool:
        """Whether the median gap between tokens is the engine's.

        Beyond 300 requests/s offered, and below 5 ms, the gaps come from the measuring client's own queue.
        """
        return self.offered_rps <= 300 and self.measured["itl_p50_ms"] >= 5

    @property
    def seeds(self) -> int:
        """How often the run is simulated."""
        return SEEDS_LIGHT if self.offered_rps <= LIGHT_RPS else SEEDS

    def as_measured(self, lengths: LengthHistograms | None, profile: str, trace: Path) -> Scenario:
        """Return the scenario of the run as it was measured: behind the API server and its client.

        Every run has a seed of its own, from its name: with one seed for all, their random errors would be the same.

        :param trace: where to write its requests, if they are known exactly.
        """
        assert lengths is not None, "runs of vLLM come with lengths"
        seed = int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:4], "big")
        scenario = scenario_of(self, lengths, profile, seed)
        return scenario.model_copy(update={"fleet": scenario.fleet.model_copy(update={"front_end": self.front_end})})

    def counted_otherwise(self, recording: Recording, duration_s: float) -> dict[str, float]:
        """Return the metrics that were not measured as a client of vLLM counts them."""
        return {}

    @property
    def regime(self) -> str:
        """What limited the run, by what was measured.

        Unsaturated: 97 % of what was offered was served, and hardly any request waited. Slot-limited: otherwise, where
        adapters outnumber slots and KV blocks were left. All else: KV memory or the GPU itself.
        """
        if self.measured["req_per_s"] >= 0.97 * self.offered_rps and self.waiting_mean < 20:
            return UNSATURATED
        return SLOT_LIMITED if self.adapters > self.gpu_slots and self.kv_usage_mean < 0.9 else OTHER_LIMITED


@dataclass(frozen=True, slots=True)
class LengthHistograms:
    """Prompt and output lengths: ``{"low", "high", "shares"}`` each."""

    prompt: Mapping[str, Any]
    output: Mapping[str, Any]


def read_runs(path: Path) -> list[MeasuredRun]:
    """Read a table of measured runs of vLLM.

    :raises InputError: naming the missing columns, or the line and value that can't be used.
    """
    return runs_of(read_table(path))


def runs_of(table: TableOfRuns) -> list[MeasuredRun]:
    """Return the rows of a table as runs of vLLM.

    :raises InputError: as ``read_runs``.
    """
    table.require(COLUMNS)
    return [_run(cells) for cells in table.rows]


def _run(cells: RunCells) -> MeasuredRun:
    row, parsed = cells.row, cells.parsed
    rates = parsed(
        "adapter_rates_rps", lambda text: [non_negative(part) for part in text.split("|")], "numbers like 0.1|0.2"
    )
    each = parsed("adapters_per_rate", lambda text: [positive_int(part) for part in text.split("|")], "counts like 8|8")
    adapters = cells.count("adapters")
    if len(rates) != len(each) or sum(each) != adapters:
        raise cells.error(
            "rates, counts and adapters don't agree",
            "adapters_per_rate",
            f"{len(rates)} rates, counts {row['adapters_per_rate']}, {adapters} adapters",
            "a count for each rate, adding up to the adapters",
        )
    if not 0 < sum(rate * count for rate, count in zip(rates, each, strict=True)) <= MOST_RPS:
        raise cells.error(
            "the total rate of all adapters can't be simulated",
            "adapter_rates_rps",
            row["adapter_rates_rps"],
            "above 0, up to 1,000,000 requests/s",
        )
    if cells.count("host_slots") < cells.count("gpu_slots"):
        raise cells.error(
            "every adapter in a slot has a copy in host memory",
            "host_slots",
            row["host_slots"],
            f"at least gpu_slots ({row['gpu_slots']})",
        )
    return MeasuredRun(
        line=cells.line,
        model=parsed("model", MODELS.__getitem__, ", ".join(MODELS)),
        workload_group=row["workload_group"],
        case=row["case"],
        gpu_slots=cells.count("gpu_slots"),
        host_slots=cells.count("host_slots"),
        adapters=adapters,
        max_lora_rank=cells.count("max_lora_rank"),
        ranks=parsed("adapter_rank_mix", lambda text: tuple(map(positive_int, text.split("|"))), "ranks like 8|8|32"),
        rates=tuple(zip(rates, each, strict=True)),
        duration_s=cells.seconds("duration_s"),
        waiting_mean=cells.number("waiting_mean"),
        kv_usage_mean=cells.number("kv_usage_mean"),
        measured={name: cells.number(name) for name in (*METRICS, *MORE_METRICS) if name in row},
        file=cells.file,
    )


def read_lengths(path: Path) -> LengthHistograms:
    """Read two histograms of token counts: ``{"prompt": {"min", "max", "bin_share"}, "output": …}``.

    :raises InputError: naming what is missing.
    """
    try:
        data = json.loads(read_regular(path, MANIFEST_BYTES))
    except OSError as error:
        raise InputError("the lengths can't be read", file=str(path), got=error.strerror) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"the lengths are not JSON: {error}", file=str(path)) from None
    sides = []
    for side in ("prompt", "output"):
        try:
            part = data[side]
            law = HistogramTokens.model_validate(
                {"law": "histogram", "low": part["min"], "high": part["max"], "shares": part["bin_share"]}
            )
        except (KeyError, TypeError, ValueError):
            raise InputError(
                "not a histogram of lengths",
                file=str(path),
                key=side,
                allowed="whole numbers min < max from 1 on, and a list bin_share of numbers from 0 on",
            ) from None
        sides.append({"low": law.low, "high": law.high, "shares": law.shares})
    return LengthHistograms(*sides)


def scenario_of(run: MeasuredRun, lengths: LengthHistograms, profile: str, seed: int = 1) -> Scenario:
    """Return the scenario that a run was: one replica of vLLM 0.8 with the settings of all these runs."""
    means = MEAN_TOKENS[run.model]
    prompt, output = (
        {"law": "histogram", **side, "mean": mean}
        for side, mean in zip((lengths.prompt, lengths.output), means, strict=True)
    )
    shares = {rank: run.ranks.count(rank) / len(run.ranks) for rank in dict.fromkeys(run.ranks)}
    targets = TARGETS.get(run.model, "all-linear")
    return Scenario.model_validate(
        {
            "schema_version": 1,
            "name": "measured-run",
            "description": f"{run.name}, {run.gpu_slots} slots",
            "workload": {
                "duration": f"{run.duration_s} s",
                "arrivals": {"process": "poisson", "rate": f"{run.offered_rps}/s"},
                "popularity": {
                    "law": "groups",
                    "groups": [{"adapters": count, "weight": rate} for rate, count in run.rates],
                },
                "tokens": {"prompt": prompt, "output": output, "correlation": LENGTH_CORRELATION},
            },
            "adapters": {
                "base_model": run.model,
                "count": run.adapters,
                "dtype": "bf16",
                "mix": [{"share": f"{share:.9%}", "rank": rank, "targets": targets} for rank, share in shares.items()],
            },
            "fleet": {
                "profile": profile,
                "engine": "vllm-0.8",
                "max_num_seqs": 2048,
                "max_num_batched_tokens": 2048,
                "prefix_caching": False,  # the servers were started with --no-enable-prefix-caching
            },
            "cache": {"gpu": {"slots": run.gpu_slots}, "host": {"slots": run.host_slots}},
            "run": {"seed": seed, "replications": 1, "warmup": "0%"},
        }
    )
