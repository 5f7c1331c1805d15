"""Measures devices and servers, and writes the profiles that predictions are made from.

May hold: timing, fitting, driving a live server; may import ``sim``.
May not: be imported by ``sim`` or ``reports``, but by commands.
"""
