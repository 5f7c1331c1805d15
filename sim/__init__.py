"""The simulator of loraplan: scenarios in, run directories out.

The layers of docs/design.md live here, each in its own folder, and import downwards only. Charts and HTML (``reports``)
and measuring devices (``calibrate``) do not, and nothing here imports torch. Scripts and notebooks ``import loraplan``.
"""

from sim.version import __version__

__all__ = ["__version__"]
