"""Crashes, slow storage, misrouted requests and stale prefixes.

Replicas know nothing of faults: they are called back through listeners.
"""
