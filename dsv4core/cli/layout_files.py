"""Reading dumped pages for `dsv4core layout`: raw bytes or hex text, and a bounded part of a file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import torch
from torch import Tensor

from dsv4core.errors import LayoutError

HEX = frozenset(b"0123456789abcdefABCDEF \t\r\n")
MAX_TEXT = 32 << 20


def open_dump(path: str) -> tuple[Path, int, bytes | None]:
    """The file, its size in page bytes, and its content where it was hex text.

    Raises LayoutError for what is not a readable, non-empty, regular file.
    """
    file = Path(path)
    try:
        info = os.stat(file)
        if not stat.S_ISREG(info.st_mode):
            raise LayoutError(f"{path} is no regular file; write the pages to one first")
        with file.open("rb") as stream:
            head = stream.read(4096)
            if not head:
                raise LayoutError(f"{path} is empty; a dump has at least one page")
            if not HEX.issuperset(head) or not head.strip():
                return file, info.st_size, None
            if info.st_size > MAX_TEXT:
                raise LayoutError(f"{path} is hex text of {info.st_size} bytes; at most {MAX_TEXT} are read")
            text = head + stream.read(MAX_TEXT)
    except OSError as problem:
        raise LayoutError(f"{path} cannot be read: {problem.strerror}") from None
    try:
        content = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        raise LayoutError(
            f"{path} begins like hex text but is none (an odd number of digits, or other characters); raw "
            f"bytes and the output of `xxd -p` are understood"
        ) from None
    return file, len(content), content


def read_part(path: str, offset: int, count: int) -> tuple[Tensor, int]:
    """Up to `count` bytes from `offset`, and the size of the whole. Shapes: -> u8 [<= count]."""
    file, size, content = open_dump(path)
    count = max(0, min(count, size - offset))
    if content is not None or count == 0:
        part = content[offset : offset + count] if content is not None else b""
    else:
        with file.open("rb") as stream:
            stream.seek(offset)
            part = stream.read(count)
    if not part:  # frombuffer takes no empty one
        return torch.empty(0, dtype=torch.uint8), size
    return torch.frombuffer(bytearray(part), dtype=torch.uint8), size
