"""What commands cost, in imports of pandas and pyplot: ``python tools/warm_start.py``.

Each round measures every command once, so that all of them meet the same machine; medians of the rounds are printed, in
CPU seconds, which vary less than seconds where others use the machine too.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROUNDS = 9
YARDSTICK = ["-c", "import pandas, matplotlib.pyplot"]
CHECK = ["-m", "sim.cli", "check", "quickstart"]
RUN = ["-m", "sim.cli", "run", "quickstart", "--set", "workload.requests=1000", "--set", "run.replications=5"]


def main() -> None:
    """Print a table of CPU seconds and ratios."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        # Compiled modules of our own, as an installation has them, whatever this shell says about writing them.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = str(Path(scratch) / "compiled")
        commands = {
            "import pandas, matplotlib.pyplot": YARDSTICK,
            "loraplan check quickstart": CHECK,
            "loraplan run quickstart, 5 × 1,000": [*RUN, "--out", str(out)],
            "the same again, finished": [*RUN, "--out", str(out)],
        }
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(ROUNDS + 1):  # the first one compiles
            shutil.rmtree(out, ignore_errors=True)
            for name, command in commands.items():
                started = _cpu_s()
                subprocess.run([sys.executable, *command], check=True, capture_output=True, env=environment)
                if number:
                    taken[name].append(_cpu_s() - started)
    yardstick = median(taken["import pandas, matplotlib.pyplot"])
    print("| command | CPU s | in imports of pandas and pyplot |\n|---|---|---|")
    for name, seconds in taken.items():
        print(f"| {name} | {median(seconds):.2f} | {median(seconds) / yardstick:.2f} |")


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
