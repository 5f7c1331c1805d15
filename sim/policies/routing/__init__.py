"""Which replica a request goes to: pure decisions over a view that may be stale.

A router is a class in here and a row in ``sim/spec/policies.toml``. What keeps a view current is in
``sim.world.routing.router_views``.
"""

from __future__ import annotations

from sim.policies.routing.router_policy import VIEW_FIELDS, Choosing, Router, RouterContext, View, WatchedRouter
from sim.spec.policies import ROUTERS, RouterEntry

__all__ = ["Choosing", "Router", "RouterContext", "View", "check_router", "make_router"]


def make_router(policy: str | RouterEntry, context: RouterContext) -> Router:
    """Return a router for one fleet.

    :param policy: an entry, or a name of loraplan's own.
    :raises InputError: if it comes from outside and can't be used.
    """
    entry = ROUTERS[policy] if isinstance(policy, str) else policy
    if not entry.origin:
        router: Router = entry.load()(context)
        return router
    found = entry.made(context, ("choose",))
    reads = getattr(found, "reads", None)
    if not isinstance(reads, (frozenset, set)) or not reads <= VIEW_FIELDS:
        allowed = ", ".join(sorted(VIEW_FIELDS))
        raise entry.unusable(f"its 'reads' must be a frozenset of what it looks at ({allowed}), not {reads!r}")
    return WatchedRouter(entry, found, frozenset(reads), context.view)


def check_router(entry: RouterEntry) -> None:
    """Try a router from outside before anything is simulated.

    :raises InputError: if it can't be imported or made, or lacks something.
    """
    if entry.origin:
        view = View(loads=[0], up=[0], resident=[0], running=[0], inside=[{}])
        make_router(entry, RouterContext(view, replicas=1, key=0, adapters=1))
