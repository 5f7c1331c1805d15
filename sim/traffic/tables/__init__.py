"""Tables in files of any kind (CSV, JSON, Parquet, lines of logs), read block by block.

May hold: readers of kinds of files, errors of rows. May not: know what columns mean, or scenarios.
"""
