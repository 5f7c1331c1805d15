"""The SimPy shell: everything that happens at a time, such as arrivals, loads, steps, rollouts and crashes.

Decisions are in ``policies``. No file is read or written here, and reports are unknown.
"""
