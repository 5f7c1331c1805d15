"""loraplan's simulator: scenarios in, run directories out.

What may live here: the layers of docs/design.md, each in its own folder, importing downwards only.
What may not: charts and HTML (``reports``), measuring devices (``calibrate``), and torch anywhere.
"""

__version__ = "0.1.0"
