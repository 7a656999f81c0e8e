"""The command ``dsv4core``: each subcommand is a module, imported only when it is asked for.

A subcommand exposes ``add_arguments(parser)`` and ``run(args) -> int``; ``args.json`` is always there.
Exit codes: 0 ok, 1 failed, 2 usage, 4 unavailable.
"""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, cast

from dsv4core import env
from dsv4core.errors import BackendUnavailableError, ConfigError, DSV4CoreError, UnknownBackendError

OK, FAILED, USAGE, UNAVAILABLE = 0, 1, 2, 4

UNUSABLE = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)

COMMANDS = {
    "info": "show backends with reasons and hints, the one chosen, versions, layouts and variables",
    "demo": "run the three kinds of attention layer and check what they compute",
    "bench": "time ops and layers, after checking them",
    "tune": "measure launch arguments of the Triton kernels on the device that is here",
    "layout": "show cache layouts byte by byte",
    "conformance": "judge a backend by the conformance suite",
    "matrix": "merge conformance reports into a support matrix",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if hasattr(sys.stdout, "reconfigure"):  # a terminal may lack letters, a tick for example
        cast(Any, sys.stdout).reconfigure(errors="backslashreplace")
    try:
        logging.basicConfig(
            level=env.read("DSV4CORE_LOG").upper(), format="%(levelname)s %(name)s: %(message)s"
        )
        return _run(words)
    except (ConfigError, UnknownBackendError) as error:
        return _stop(error, USAGE)
    except BackendUnavailableError as error:
        return _stop(error, UNAVAILABLE)
    except DSV4CoreError as error:
        return _stop(error, FAILED)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except UNUSABLE as error:  # its message names the file or folder
        return _stop(error, USAGE)


def build_parser(command: str | None = None) -> tuple[argparse.ArgumentParser, ModuleType | None]:
    """Return the parser and the module of ``command``; only that one subcommand is imported."""
    parser = argparse.ArgumentParser(
        prog="dsv4core", description="DeepSeek-V4 attention over paged byte caches."
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    module: ModuleType | None = None
    for name, summary in COMMANDS.items():
        # "resolve" lets a subcommand say --json again where it has subcommands of its own
        child = subparsers.add_parser(name, help=summary, description=summary, conflict_handler="resolve")
        child.add_argument("--json", action="store_true", help="print one JSON object")
        if name == command:
            module = importlib.import_module(f"dsv4core.cli.{name}")
            module.add_arguments(child)
    return parser, module


def _run(words: list[str]) -> int:
    command = next((word for word in words if not word.startswith("-")), None)
    try:
        parser, module = build_parser(command)
    except ImportError as error:
        print(
            f"dsv4core {command}: cannot be loaded here: {error}\n`dsv4core info` shows what is installed",
            file=sys.stderr,
        )
        return UNAVAILABLE
    try:
        args = parser.parse_args(words)
    except SystemExit as stop:  # argparse has printed help or the error
        return stop.code if isinstance(stop.code, int) else USAGE
    if args.version:
        from dsv4core import __version__

        print(f"dsv4core {__version__}")
        return OK
    if module is None:
        parser.print_help(sys.stderr)
        return USAGE
    args.json = args.json or "--json" in words  # before or after the subcommand of a subcommand
    return int(module.run(args))


def _stop(error: Exception, code: int) -> int:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    return code
