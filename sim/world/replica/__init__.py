"""One replica: its server, its caches and its loads. ``sim/world/replica_assembly.py`` puts it together from a world.

It may not import rollouts, faults, routing or pools.
"""
