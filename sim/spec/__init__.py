"""Scenarios and profiles: models, units, and reading them from files.

May hold: frozen pydantic models, parsing, messages about bad input.
May not: simulate, draw random numbers, or print.
"""
