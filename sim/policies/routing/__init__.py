"""Which replica a request goes to: pure decisions over a view that may be stale.

A policy is one class and one line in ``ROUTERS``; its name also stands in ``sim.spec.sections.routing.ROUTERS``, which
checks scenarios without importing policies. What keeps a view current is in ``sim.world.routing.router_views``.
"""

from sim.policies.routing.affinity import ByActivity, ByResidency
from sim.policies.routing.hashing import Hash
from sim.policies.routing.plain import LeastLoaded, PowerOfTwo, Random, RoundRobin
from sim.policies.routing.router_policy import Choosing, Router, RouterContext, View
from sim.policies.routing.service import ServicePerAdapter

ROUTERS: dict[str, type[Router]] = {
    "round-robin": RoundRobin,
    "random": Random,
    "least-loaded": LeastLoaded,
    "power-of-two": PowerOfTwo,
    "hash": Hash,
    "affinity-residency": ByResidency,
    "affinity-activity": ByActivity,
    "service-per-adapter": ServicePerAdapter,
}

__all__ = ["ROUTERS", "Choosing", "Router", "RouterContext", "View"]
