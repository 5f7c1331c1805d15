"""Profiles from published measurements instead of our own samples."""
