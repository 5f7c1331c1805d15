"""The run directory: written atomically, resumed after a kill, read again.

Nothing else in ``sim.results`` touches the disk.
"""
