"""Replicas that also answer requests without an adapter, for faults that drop the adapter."""

from __future__ import annotations

from sim.policies.adapter_queues import AdapterQueues
from sim.world.replica.continuous import BatchServer
from sim.world.replica.host_cache_fill import HostCacheFill
from sim.world.replica.server import Server


def serve_base_model(server: Server, host_fill: HostCacheFill | None) -> None:
    """Let a replica that is still empty answer requests with the base model, numbered after all adapters.

    Such requests need no load and no slot. They cost a step what any sequence does, but nothing for an adapter.
    """
    number = server.cache.serve_base_model()
    if host_fill is not None:
        host_fill.cache.serve_base_model()
    if isinstance(server, BatchServer):
        server.scheduler.serve_base_model(number)
        if isinstance(server.waiting, AdapterQueues):
            server.waiting.serve_base_model(number)
