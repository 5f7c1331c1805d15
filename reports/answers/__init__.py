"""Findings as data and sentences: what the top box says.

No charts and no HTML.
"""
