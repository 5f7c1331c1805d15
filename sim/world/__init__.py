"""The SimPy shell: events, loaders, servers, a fleet.

May hold: anything that happens at a time.
May not: decide (``policies`` does), read or write files, or know of reports.
"""
