"""Findings as data: numbers, states and names, of which ``reports.text`` makes sentences.

No sentences, no charts and no HTML.
"""
