"""Runs the command line as ``python -m dsv4core``."""

import sys

from dsv4core.cli import main

if __name__ == "__main__":
    sys.exit(main())
