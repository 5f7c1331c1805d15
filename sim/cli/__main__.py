"""``python -m sim.cli``."""

from sim.cli import start

start()
