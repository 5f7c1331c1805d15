"""Tenants in the traffic: whose each request is, how popular their adapters are, and arrivals of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import numpy as np

from sim.arrays import Floats, Ints
from sim.errors import ScenarioError
from sim.rng import stream_key
from sim.spec.sections.tenants import Tenant, shares_of
from sim.spec.sections.traffic_laws import GammaArrivals, OpenArrivals, PiecewiseArrivals, Popularity
from sim.traffic.popularity import AdapterSampler, weights_of
from sim.traffic.sources import AggregateArrivals, GrowingSizes, RequestBlock, RequestSource

_ONE_TENANT = "exactly one tenant for each adapter"
_MOST_NAMES = 3
"""Adapters that an error message names."""


def tenant_of_adapters(tenants: Sequence[Tenant], names: Sequence[str], count: int, base_share: float) -> Ints:
    """Return the tenant of each adapter, and last that of the base model, by their places in the list; (count + 1,).

    :param names: of the adapters, or () where they are numbered.
    :param base_share: share of the requests that are for the base model.
    :raises ScenarioError: where an adapter, or the base model, has no tenant or several.
    """
    base = next((place for place, tenant in enumerate(tenants) if tenant.base_model), None)
    if base is None and base_share > 0:
        raise ScenarioError(
            "no tenant has the requests to the base model", key="tenants", hint="set base_model: true for one"
        )
    found = np.zeros(count + 1, dtype=np.int64)
    found[-1] = base or 0
    if any(tenant.match for tenant in tenants):
        found[: len(names)] = _matched(tenants, names)
        return found
    counted = [(place, tenant.adapters) for place, tenant in enumerate(tenants) if tenant.adapters is not None]
    if not counted:
        return found
    total = sum(adapters for _, adapters in counted)
    if names:
        raise ScenarioError(
            "the adapters have names, so numbers of adapters don't say which are whose",
            key=f"tenants.{counted[0][0]}.adapters",
            got=counted[0][1],
            hint=f"give match, a list of patterns such as {names[0]}",
        )
    if total != count:
        raise ScenarioError(
            "the tenants' adapters don't add up to those of the traffic",
            key="tenants",
            got=f"{total} of tenants, {count} adapters",
        )
    found[:-1] = np.repeat([place for place, _ in counted], [adapters for _, adapters in counted])
    return found


def _matched(tenants: Sequence[Tenant], names: Sequence[str]) -> Ints:
    """Return the tenant whose patterns match each name."""
    if not names:
        raise ScenarioError("the traffic names no adapters", key="tenants", hint="give adapters in place of match")
    owners = [
        [place for place, tenant in enumerate(tenants) if any(fnmatchcase(name, each) for each in tenant.match)]
        for name in names
    ]
    unmatched = [name for name, own in zip(names, owners, strict=True) if not own]
    if unmatched:
        raise ScenarioError(
            "no tenant matches these adapters",
            key="tenants",
            got=_some(unmatched),
            allowed=_ONE_TENANT,
            hint=f"add a pattern to match, such as {unmatched[0]}, or a tenant for them",
        )
    shared = [(name, own) for name, own in zip(names, owners, strict=True) if len(own) > 1]
    if shared:
        name, own = shared[0]
        found = [
            f"{next(each for each in tenants[place].match if fnmatchcase(name, each))} of {tenants[place].name}"
            for place in own
        ]
        raise ScenarioError(
            "several tenants match these",
            key="tenants",
            got=_some([name for name, _ in shared]),
            allowed=_ONE_TENANT,
            hint=f"narrow a pattern: {name} matches {' and '.join(found)}; "
            "[!ab]* matches the names that begin with neither a nor b",
        )
    return np.array([own[0] for own in owners], dtype=np.int64)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def weights_by_tenant(law: Popularity, tenants: Sequence[Tenant], count: int) -> Floats:
    """Return each adapter's probability, shape (count,), where tenants have shares: the law within each tenant.

    A law that gives every adapter its weight keeps them relative to each other within a tenant.
    """
    counted, shares = [tenant for tenant in tenants if tenant.adapters is not None], list(shares_of(tenants).values())
    edges = np.cumsum([0, *(tenant.adapters or 0 for tenant in counted)])
    whole = weights_of(law, count) if law.fixes_count else None
    parts = []
    for place, tenant in enumerate(counted):
        first, last = int(edges[place]), int(edges[place + 1])
        own = weights_of(law, last - first) if whole is None else whole[first:last]
        if not own.sum() > 0:
            raise ScenarioError(
                "this tenant has a share of the requests, but no adapter with a weight above zero",
                key="workload.popularity",
                got=tenant.name,
            )
        parts.append(shares[place] * own / own.sum())
    return np.concatenate(parts)


class TenantArrivals:
    """Requests of several tenants whose arrivals are independent of each other, in order of time.

    Each has random streams of its own, by its name, so a tenant that comes or goes leaves the others' requests as they
    are.

    :param law: arrivals of the tenants without any of their own, with the mean rate of all together.
    :param weights: (adapters,) probability of each adapter.
    """

    def __init__(
        self, law: OpenArrivals, tenants: Sequence[Tenant], tenant_of: Ints, weights: Floats, seed: int
    ) -> None:
        self._sources: list[RequestSource] = []
        for place, share in shares_of(tenants).items():
            tenant, rate = tenants[place], share * law.rate
            own = np.where(tenant_of[:-1] == place, weights, 0.0)
            self._sources.append(
                AggregateArrivals(
                    _law_of(tenant, law, rate),
                    rate,
                    AdapterSampler(own / own.sum()),
                    stream_key(seed, 0, f"tenant {tenant.name}"),
                    GrowingSizes(),
                )
            )

    def blocks(self, replication: int, most: int | None) -> Iterator[RequestBlock]:
        streams = [source.blocks(replication, None) for source in self._sources]
        held = [next(each) for each in streams]
        given = 0
        while most is None or given < most:
            end_s = min(float(block.times[-1]) for block in held)  # up to then, all arrivals are known
            cuts = [int(np.searchsorted(block.times, end_s, side="right")) for block in held]
            parts = [block.part(0, cut) for block, cut in zip(held, cuts, strict=True)]
            times = np.concatenate([part.times for part in parts])
            order = np.argsort(times, kind="stable")
            yield RequestBlock(times[order], np.concatenate([part.adapters for part in parts])[order])
            given += len(times)
            for place, (block, cut) in enumerate(zip(held, cuts, strict=True)):
                held[place] = block.part(cut, len(block.times)) if cut < len(block.times) else next(streams[place])


def _law_of(tenant: Tenant, law: OpenArrivals, rate: float) -> OpenArrivals:
    if tenant.steps:
        return PiecewiseArrivals(process="piecewise", rate=f"{rate!r}/s", steps=tenant.steps, cv=tenant.cv or 1.0)
    if tenant.cv is not None:
        return GammaArrivals(process="gamma", rate=f"{rate!r}/s", cv=tenant.cv)
    return law
