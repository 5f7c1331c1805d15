"""Fit what engines add to their kernels, and replay the measured points with built profiles."""
