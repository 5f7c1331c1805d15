"""Many runs, one answer: points times replications, in parallel, resumable.

May hold: grids, worker processes, stopping rules; in the folder of a question also its findings, its report and its
command. May not: print (``finish`` in ``sim.cli.output`` does), or implement the simulation (``world`` does).
"""
