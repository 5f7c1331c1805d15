"""What proves the pages of the documentation, and no user plans with; outside the wheel.

It uses the public API and the simulator as anyone may, and nothing that is shipped imports it.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
