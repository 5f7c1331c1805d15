"""What a plan, its what-ifs and the remedies of a vetting leave in the manifest of a run directory.

All of them are frozen; ``sim.results.model.from_plain`` reads them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from sim.results.model import Difference


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """One design that a search evaluated.

    :ivar word: the verdict; ``term``: the one that decides it; ``score``: its value over its target; None where that is
        infinite.
    :ivar unserved: share of the requests that were refused or failed, where that makes its term the worst.
    :ivar probability: how likely it meets the SLO; ``requests``: simulated in each replication.
    """

    set: dict[str, Any]
    replications: int
    word: str
    score: float | None
    term: str
    value: float | None
    unserved: float | None
    probability: float
    requests: int


@dataclass(frozen=True, slots=True)
class GradeRecord:
    """How likely a design meets the SLO.

    :ivar verdict: ``met``, ``probably met``, ``unclear``, ``probably not met`` or ``not met``.
    :ivar price: of all its GPUs, per hour; None where the plan has no price.
    """

    set: dict[str, Any]
    verdict: str
    probability: float
    price: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data, without a price where there is none."""
        return {name: value for name, value in asdict(self).items() if name != "price" or value is not None}


@dataclass(frozen=True, slots=True)
class FleetRecord:
    """The cheapest fleet of one kind.

    :ivar price: of a GPU, per hour; ``gpus``: of one replica; ``total``: of the fleet; None where none meets the SLO,
        and ``word`` says why.
    """

    fleet: str
    price: float
    gpus: int = 1
    replicas: int | None = None
    full_replicas: int = 0
    total: float | None = None
    word: str = ""


@dataclass(frozen=True, slots=True)
class FormulaRecord:
    """What formulas say of a design.

    :ivar miss_ratio: of LRU with independent requests in the long run (Che).
    :ivar loader_load, gpu_load: offered load over capacity; above 1 queues only grow. None in a closed loop.
    :ivar batch: running sequences per replica at which it keeps up; None: it never does, or engine fixed.
    :ivar kv_share: share of the KV cache that such a batch uses; None for engine fixed.
    """

    miss_ratio: float
    loader_load: float | None = None
    gpu_load: float | None = None
    batch: float | None = None
    kv_share: float | None = None


@dataclass(frozen=True, slots=True)
class RefusedDesign:
    """A design that can't be built."""

    set: dict[str, Any]
    why: str


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """What a search left: ``manifest["plan"]``.

    :ivar ranges: by key: first value, last value, how many.
    :ivar answer: the values found, ``{}`` where nothing meets the SLO; of a plan for a price with ``fleet`` and
        ``price`` per hour, and with several GPUs per replica ``gpus``, those of the whole fleet.
    :ivar answer_key, best_key, edge_key, other_edge_key, beyond_key: names of the points of those designs; None where
        there is none. The edge is the more wanted neighbour that does not do.
    :ivar edge_refused, edge_refused_key: why the edge can't be built, and the key that stands in the way.
    :ivar doubtful: values of designs too close to call.
    :ivar grades: every design that was simulated, the most wanted first; ``probable``: the first of them that at least
        probably meets the SLO; None where none does.
    :ivar frontier: with two variables, the smallest second value by value of the first, where any is enough.
    :ivar refused: the first of the ``refused_count`` designs of the search that are not possible.
    :ivar looks: designs that were evaluated, in order (files call them so).
    :ivar flags: command lines by engine; ``no_flags``: why there are none; empty where there are, or where nothing is
        recommended.
    :ivar every_candidate_requests: what one run of each candidate would simulate.
    """

    question: dict[str, Any] = field(default_factory=dict)
    direction: str = "minimize"
    keys: list[str] = field(default_factory=list)
    confidence: float = 0.95
    ranges: dict[str, list[Any]] = field(default_factory=dict)
    feasible: bool = False
    answer: dict[str, Any] = field(default_factory=dict)
    certain: bool = False
    answer_key: str | None = None
    best_key: str | None = None
    edge_key: str | None = None
    other_edge_key: str | None = None
    edge_set: dict[str, Any] | None = None
    edge_refused: str | None = None
    edge_refused_key: str | None = None
    beyond_key: str | None = None
    doubtful: list[dict[str, Any]] = field(default_factory=list)
    grades: list[GradeRecord] = field(default_factory=list)
    probable: GradeRecord | None = None
    frontier: list[GradeRecord] = field(default_factory=list)
    refused: list[RefusedDesign] = field(default_factory=list)
    refused_count: int = 0
    fleets: list[FleetRecord] = field(default_factory=list)
    looks: list[EvaluationRecord] = field(default_factory=list)
    simulated_requests: int = 0
    candidates: int = 0
    every_candidate_requests: int = 0
    formulas: FormulaRecord | None = None
    flags: dict[str, Any] = field(default_factory=dict)
    no_flags: str = ""
    beyond_flags: Any = None
    full_replicas: int = 0
    replications: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


PAIR = "pair"
"""The group of two changes at once."""


@dataclass(frozen=True, slots=True)
class WhatIfRow:
    """What one change does: a row of ``manifest["what_if"]``.

    :ivar refused: why the change can't be made; None where it can.
    :ivar verdict: on the SLO with the change; None where it can't be made.
    :ivar grade: of the design that it makes, where that was evaluated as a plan does its own, and not only tried in
        short runs as ``verdict`` and ``metrics``; ``graded``: values by term of the SLO in those longer runs.
    """

    group: str
    label: str
    set: dict[str, Any]
    note: str = ""
    refused: str | None = None
    verdict: str | None = None
    metrics: dict[str, Difference] = field(default_factory=dict)
    grade: GradeRecord | None = None
    graded: dict[str, float | None] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data, without a grade where there is none; the notes of differences are not kept."""
        data = asdict(self)
        for change in data["metrics"].values():
            del change["name"], change["note"]
        if self.grade is None:
            del data["grade"], data["graded"]
        return data


@dataclass(frozen=True, slots=True)
class RemedyRow(WhatIfRow):
    """What a remedy for what a vetting found does to the fleet: a row of ``manifest["cures"]``.

    :ivar title: of the remedy.
    :ivar who: the adapters it is for, in words (files call them so); ``scope``: the same for a chart.
    :ivar cure: what ``loraplan vet`` advises; ``paths``: of the adapters (files call them ``for``).
    :ivar warnings: of the run with it that the fleet as it is doesn't have.
    :ivar adapter_bytes: before and after; ``memory``: the same by what there is room for.
    """

    title: str = ""
    who: str = ""
    scope: str = ""
    adapters: Any = None
    cure: str = ""
    warnings: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    adapter_bytes: list[float | None] = field(default_factory=list)
    memory: dict[str, list[int | None]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data, under the names of the file."""
        return {("for" if name == "paths" else name): value for name, value in WhatIfRow.to_json(self).items()}
