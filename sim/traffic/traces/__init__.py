"""Recorded requests: reads files of every format into arrays (``read``), and writes plain files (``export``).

May hold: readers of rows, blocks and formats, errors of rows, scales. May not: know laws of scenarios.
"""
