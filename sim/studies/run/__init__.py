"""Runs and sweeps: what one design does, and which of several meets the SLO."""
