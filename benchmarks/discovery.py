"""What a fresh process pays for ``dsv4core.backends()``, beside what no discovery can do without.

python benchmarks/discovery.py [--runs 21] [--csv FILE]: processes take turns that discover backends, and that
only import pluggy and ``importlib.metadata`` and ask for the entry points. Processor time from before the
first import, with compiled files, as an installed package has them. Exits 1 when the fastest process that
discovers takes 80 ms or more.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import subprocess
import sys
import tempfile

LIMIT = 80.0
BODIES = {
    "discovery": "import dsv4core; dsv4core.backends()",
    "floor": "import importlib.metadata as m, pluggy; m.entry_points(group='dsv4core.backends')",
}


def milliseconds(body: str, compiled: str) -> float:
    """Return the processor time of a body in a process of its own, whose compiled files lie in a folder."""
    code = f"import time; start = time.process_time(); {body}; print(1e3 * (time.process_time() - start))"
    own = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": compiled}
    return float(subprocess.check_output([sys.executable, "-c", code], env={**os.environ, **own}, text=True))


def main() -> None:
    """Print a line per body, and write them with the machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=21)
    parser.add_argument("--csv")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as compiled:
        for body in BODIES.values():
            milliseconds(body, compiled)  # compiles
        turns = [[milliseconds(body, compiled) for body in BODIES.values()] for _ in range(options.runs)]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    rows = [
        (name, round(min(times), 1), round(statistics.median(times), 1), options.runs, machine)
        for name, times in zip(BODIES, zip(*turns, strict=True), strict=True)
    ]
    for name, best, median, *_ in rows:
        print(f"{name:<10} best {best:6.1f} ms   median {median:6.1f} ms   of {options.runs} processes")
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([("what", "best ms", "median ms", "processes", "machine"), *rows])
    sys.exit(rows[0][1] >= LIMIT)


if __name__ == "__main__":
    main()
