"""Checks of one section of a scenario against the others.

Only ``scenario.py`` calls them; they read no files.
"""
