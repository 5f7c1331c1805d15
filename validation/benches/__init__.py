"""Measure speed, and how well intervals, headroom and plans hold."""
