"""The reports of runs, sweeps and plans, and what a notebook shows of them.

The only part of ``reports`` that puts answers, charts and tables together; ``render`` writes the files.
"""
