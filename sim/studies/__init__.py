"""Many runs, one answer: points times replications, in parallel, resumable.

May hold: grids, worker processes, stopping rules.
May not: print or exit (``cli`` does), draw charts, or implement the simulation (``world`` does).
"""
