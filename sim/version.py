"""The version of loraplan and how it was built, in a module that imports next to nothing."""

from importlib.machinery import ExtensionFileLoader
from importlib.util import find_spec

__version__ = "0.1.0"


def build() -> str:
    """Return ``compiled`` if the simulator's hot modules are extension modules, else ``interpreted``."""
    spec = find_spec("sim.policies.scheduler")
    return "compiled" if spec is not None and isinstance(spec.loader, ExtensionFileLoader) else "interpreted"
