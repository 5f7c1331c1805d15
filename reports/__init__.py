"""Run directories in, HTML out.

May hold: charts, words about results, templates.
May not: simulate, or read anything but a run directory.
"""
