"""Read aiter's source: signatures of the entry points in use, and the lines that adapters rely on.

    python backends/rocm/tests/aiter_record.py CHECKOUT COMMIT     # write both JSON files anew

Nothing of aiter is imported or copied: a signature is names, kinds and defaults, a line is kept as its hash.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from dsv4core_rocm.aiter.entries import ENTRIES, recorded

HOME = Path(__file__).parents[1] / "dsv4core_rocm" / "aiter"
REPOSITORY = "github.com/ROCm/aiter"


def signature(source: str, name: str) -> tuple[int, str]:
    """Line and parameters of a module-level function, without annotations, as `(a, b=None, *, c)`."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            for parameter in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
                parameter.annotation = None
            return node.lineno, f"({ast.unparse(node.args)})"
    raise LookupError(f"no function {name}")


def signatures(checkout: Path) -> dict[str, Any]:
    """Every entry point in use, as it is in a checkout."""
    found: dict[str, Any] = {}
    for name, module in ENTRIES.items():
        file = module.replace(".", "/") + ".py"
        line, parameters = signature((checkout / file).read_text(), name)
        found[name] = {"file": file, "line": line, "parameters": parameters}
    return found


def line_hash(checkout: Path, file: str, line: int) -> str:
    """The hash of a line without the blanks around it."""
    text = (checkout / file).read_text().splitlines()[line - 1].strip()
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def main() -> None:
    """Write both files."""
    checkout, commit = Path(sys.argv[1]), sys.argv[2]
    about = {"repository": REPOSITORY, "commit": commit}
    write("signatures", about | {"entries": signatures(checkout)})
    lines = recorded("conventions")["lines"]
    for said in lines.values():
        said["sha"] = line_hash(checkout, said["file"], said["line"])
    write("conventions", about | {"lines": lines})


def write(name: str, content: dict[str, Any]) -> None:
    """Put one file down."""
    (HOME / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
