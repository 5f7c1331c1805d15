"""Charts as inline SVG, and the choice of which charts a run gets.

Charts know no tables and no pages.
"""
