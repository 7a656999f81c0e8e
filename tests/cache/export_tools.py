"""Small caches with a request in them, their exports, and exports taken apart."""

from __future__ import annotations

import hashlib
import json
import struct
from functools import lru_cache

from request_world import LAYERS, TINY, dirty, step

from dsv4core.cache import PagedCache


def grow(cache, histories, new, token=1):
    return step(cache, histories, new, {i: range(token, token + n) for i, n in new.items()})


def made(length=300, config=TINY, layers=LAYERS, **limits):
    limits = {"max_requests": 4, "max_chunk": 600} | limits
    cache, histories = dirty(PagedCache.allocate(config, layers, 700, **limits)), {}
    if length:
        grow(cache, histories, {"a": length})
    return cache, histories


@lru_cache
def exported(length=300):
    return made(length)[0].export("a")


def sealed(header, blobs=b"", *, version=1, magic=b"DSV4REQ\0", size=None):
    """Bytes with a right checksum, whatever they say."""
    head = struct.pack("<8sII", magic, version, len(header) if size is None else size) + header
    return head + hashlib.sha256(head).digest() + blobs


def parts(data):
    """Header (as a dict) and pages of an export."""
    size = struct.unpack("<I", data[12:16])[0]
    return json.loads(data[16 : 16 + size]), data[16 + size + 32 :]


def text(values):
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
