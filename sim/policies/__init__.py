"""Pure decisions of schedulers, caches and routers, and the costs and memory that they depend on.

Nothing here imports SimPy, reads or writes files, or knows any time that is not passed in.
"""
