"""Pure decisions: what a scheduler, a cache, a router would do, as plain values.

May hold: eviction, cache, admission, scheduler, router, costs, memory, engine presets.
May not: import SimPy, read or write files, know the clock beyond what it is told.
"""
