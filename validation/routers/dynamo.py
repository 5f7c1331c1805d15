"""NVIDIA Dynamo by its tables: cost, rendezvous placement, copies, load estimate, and whole runs of requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from sim.policies.routing.dynamo import ActiveBlocks, KvIndex, choice_weights, worker_cost
from sim.policies.routing.dynamo_placement import (
    copies_by_share,
    home_scores,
    placed_by_flow,
    placed_on,
    rankings,
    smoothed_load,
    whole_load,
)
from validation.routers import Judge, Judged, largest_error

_OPTIONS: Final = {
    "kv_overlap_score_credit": "credit",
    "prefill_load_scale": "scale",
    "decode_active_request_weight": "request_weight",
}


class Keys:
    """Numbers for the runs of texts that are given by segments: equal ones for equal text from the start."""

    def __init__(self) -> None:
        self._of: dict[tuple[int, Any], int] = {}

    def of(self, segments: Sequence[Sequence[int]]) -> tuple[list[tuple[int, int]], int]:
        """Return the runs of a text and its length."""
        text: list[tuple[int, int]] = []
        end, before = 0, -1
        for segment, length in segments:
            end += length
            key = self._of.setdefault((before, segment), len(self._of))
            text.append((end, key))
            before = self._of.setdefault((key, ("after", length)), len(self._of))
        return text, end


def _costs(table: Mapping[str, Any]) -> Iterator[Judged]:
    for row in table["snapshots"]:
        block, tokens = row["block"], row["isl_tokens"]
        options = {_OPTIONS[name]: value for name, value in row["config"].items() if name in _OPTIONS}
        costs, blocks = [], []
        for replica in row["replicas"]:
            active = ActiveBlocks(block)
            for prompt, _ in replica["active"]:
                active.add((), prompt, 0)
            blocks.append(active.needed((), tokens, 0) - replica["potential_decode_blocks"])
            # What is still being prefilled there follows from the table: none, in all its rows.
            prefill = replica["potential_prefill_tokens"] + block * replica["overlap_blocks"]
            overlap, requests = replica["overlap_blocks"], active.requests
            costs.append(worker_cost(prefill, overlap, blocks[-1] + replica["potential_decode_blocks"], requests,
                                     block=block, **options))  # fmt: skip  # one call on two lines
        weights = [round(weight, 6) for weight in choice_weights(costs, row["temperature"])] if costs else []
        error = max(largest_error(costs, row["cost"]), largest_error(weights, row["probability_by_rule"]))
        yield Judged(row["id"], max([error, *map(abs, blocks)]))


def _sequences(table: Mapping[str, Any]) -> Iterator[Judged]:
    for run in table["sequences"]:
        block, workers = run["block"], range(run["replicas"])
        keys, scopes, cached = Keys(), dict[str | None, int](), KvIndex(block)
        active, ending = [ActiveBlocks(block) for _ in workers], dict[int, list[Any]]()
        for number, (name, segments, overlap, prefill, decode, cost, chosen, freed) in enumerate(run["requests"]):
            for worker, *request in ending.pop(number, ()):
                active[worker].remove(*request)
            scope = scopes.setdefault(name, len(scopes))
            text, tokens = keys.of(segments)
            found = cached.matched(text, scope)
            ours = [found.get(worker, 0) for worker in workers]
            blocks = [active[worker].needed(text, tokens, scope) for worker in workers]
            costs = [worker_cost(tokens, each, there, 0, block=block) for each, there in zip(ours, blocks, strict=True)]
            rest = [tokens - block * each for each in ours]
            pairs = ((ours, overlap), (blocks, decode), (rest, prefill), (costs, cost))
            equal = choice_weights(costs, 0.0)[chosen] > 0
            yield Judged(f"{run['id']}/{number}", max(largest_error(mine, real) for mine, real in pairs), equal)
            active[chosen].add(text, tokens, scope)
            cached.stored(text, tokens, chosen, scope)
            ending.setdefault(freed, []).append((chosen, text, tokens, scope))


def _homes(table: Mapping[str, Any]) -> Iterator[Judged]:
    for row in table["snapshots"]:
        name, workers, copies = row["adapter"], row["workers"], row["copies"]
        order = rankings([name], workers)[0]
        full = {worker for worker, used in zip(workers, row["used_of_4"], strict=True) if used >= 4}
        scores = [f"{score:016x}" for score in home_scores([name], workers)[0].tolist()]
        sets = (order[:copies], placed_on(order, copies, full), placed_on(order, copies, full, row["prior"]))
        real = (row["plain"], row["with_slots"], row["sticky"])
        yield Judged(row["id"], equal=(scores, order, *sets) == (row["scores"], row["ranking"], *real))


def _flows(table: Mapping[str, Any]) -> Iterator[Judged]:
    """Of equally cheap placements any is right, so what counts is the cost, and that slots are enough."""
    for row in table["snapshots"]:
        room, before = {int(worker): slots for worker, slots in row["capacity"].items()}, row["previous"]
        homes, overflow, cost = placed_by_flow(room, row["copies"], before, row["changed"])
        pairs = {(name, worker) for name, workers in homes.items() for worker in workers}
        had = {(name, worker) for name, workers in before.items() for worker in workers if worker in room}
        ours = (overflow, len(pairs - had), len(had - pairs), cost if room else 0)  # without workers, nothing flows
        used = Counter(worker for _, worker in pairs)
        within = all(used[worker] <= room[worker] for worker in used)
        exact = sum(row["copies"].values()) == len(pairs) + overflow
        real = (row["overflow"], row["loads"], row["unloads"], row["flow_cost"])
        yield Judged(row["id"], largest_error(ours, real), within and exact)


def _copies(table: Mapping[str, Any]) -> Iterator[Judged]:
    for row in table["snapshots"]:
        yield Judged(row["id"], equal=copies_by_share(row["load"], row["slots"], row["workers"]) == row["copies"])


def _loads(table: Mapping[str, Any]) -> Iterator[Judged]:
    for row in table["snapshots"]:
        smoothed, found = None, []
        for count in row["window_counts"]:
            smoothed = smoothed_load(smoothed, count, row["alpha"])
            found.append(whole_load(smoothed))
        yield Judged(row["id"], largest_error(found, row["load"]))


JUDGES: dict[str, Judge] = {
    "dynamo_cost": _costs,
    "dynamo_sequence": _sequences,
    "dynamo_hrw": _homes,
    "dynamo_min_cost_flow": _flows,
    "dynamo_copies": _copies,
    "dynamo_load_estimate": _loads,
}
