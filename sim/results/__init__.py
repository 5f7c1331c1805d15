"""Records in, tables and run directories out.

May hold: metrics, intervals, the run directory's files.
May not: simulate, decide anything inside the simulated world, or draw charts.
"""
