"""One HTML file for each kind of result.

The only part of ``reports`` that puts answers, charts and tables together.
"""
