"""One HTML file for each kind of result.

The only part of ``reports`` that puts answers, charts and tables together; ``page`` is the one way to write a file.
"""
