"""Recorded requests: files of every format in, arrays of requests out (``read``), and plain files again (``export``).

May hold: readers of rows, blocks and formats, what is wrong with a row, scales. May not: know laws of scenarios.
"""
