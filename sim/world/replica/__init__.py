"""One replica: its server, its caches, its loads, and how it is put together from a world.

It may not import rollouts, faults, routing or pools.
"""
