"""Hostile bytes: exports that are damaged, or that lie with right checksums."""

from __future__ import annotations

import hashlib
import json
import random
import struct
import time

import pytest
from export_tools import exported, grow, made, parts, sealed, text
from request_world import assert_bytes, books

from dsv4core.cache import RequestExport
from dsv4core.errors import CacheError


def test_bytes_that_are_not_an_export():
    data = exported().to_bytes()
    header, blobs = parts(data)
    size = len(data) - len(blobs) - 48
    cases = {
        "at least 16 bytes, got 0": b"",
        "at least 16 bytes, got 15": data[:15],
        "got b'DSV4REX": b"DSV4REX" + data[7:],
        "version 1, got .* version 2": sealed(data[16 : 16 + size], blobs, version=2),
        rf"expected a header .* got one of {2**32 - 1}": data[:12] + b"\xff" * 4 + data[16:],
        rf"got one of {len(data)}": data[:12] + struct.pack("<I", len(data)) + data[16:],
        "'header': expected sha256": data[:40] + b"X" + data[41:],
        rf"expected {len(data)} bytes, .* got {len(data) - 1}": data[:-1],
        rf"expected {len(data)} bytes, .* got {len(data) + 1}": data + b"\0",
        "'swa.0': expected sha256": data[: len(data) - len(blobs)] + b"\1" + blobs[1:],
        "another spelling": sealed(json.dumps(header).encode(), blobs),
        "JSONDecodeError": sealed(b"{", blobs),
        "RecursionError|JSONDecodeError|too deep": sealed(b"[" * 500_000, blobs),
        "TypeError": sealed(b"[1]", blobs),
        "KeyError": sealed(b"{}", blobs),
        "ValueError|digits|int": sealed(b'{"blobs":[],"length":' + b"9" * 5000 + b"}", blobs),
        "UnicodeDecodeError": sealed(b'{"\xff":1}', blobs),
    }
    for match, bad in cases.items():
        with pytest.raises(CacheError, match=match):
            RequestExport.from_bytes(bad)
    for wrong in (None, 5, "text", [1]):
        with pytest.raises(CacheError, match="expected bytes, got"):
            RequestExport.from_bytes(wrong)


def test_headers_that_lie():
    data = exported().to_bytes()
    header, blobs = parts(data)
    blob = header["blobs"][0]
    lies = [
        ("length", {"length": 2**40}),
        ("length", {"length": -1}),
        ("length", {"length": 300.0}),
        ("length", {"length": True}),
        ("rows up to", {"length": 301}),
        ("blobs", {"blobs": []}),
        ("profile", {"profile": 1}),
        ("not a field", {"more": 1}),
        ("model", {"model": {"a": "b"}}),
        ("one group and layer", {"blobs": [blob, blob]}),
        ("at most 4096", {"blobs": [0] * 5000}),
        ("TypeError", {"blobs": [5]}),
        ("TypeError", {"blobs": [{"self": 5}]}),
    ]
    absurd = {
        "pages": 2**40,
        "rows": 0,
        "page_bytes": 2**39,
        "end": 2**33,
        "start": 2**33,
        "sha256": "zz",
        "group": "c9",
        "layer": -1,
        "ratio": 3,
        "layout": "no_such",
        "row_values": 2**60,
        "version": 7,
        "fingerprint": "f" * 12,
    }
    lies += [
        (name if name != "pages" else "not a field", {"blobs": [{**blob, name: v}]})
        for name, v in absurd.items()
    ]
    lies.append(("has no group", {"blobs": [{**header["blobs"][2], "ratio": 128}]}))
    for match, change in lies:
        with pytest.raises(CacheError, match=match):
            RequestExport.from_bytes(sealed(text({**header, **change}), blobs))
    huge = {**blob, "rows": 2**20, "page_bytes": -(-(2**20) * 584 // 576) * 576}
    with pytest.raises(CacheError, match=r"expected \d{9,} bytes"):
        RequestExport.from_bytes(sealed(text({**header, "blobs": [huge]}), blobs))


NUMBERS = [
    0,
    1,
    -1,
    3,
    127,
    128,
    299,
    301,
    2**16,
    2**31,
    2**32,
    2**63,
    2**80,
    0.5,
    True,
    None,
    "",
    "swa",
    [],
    {},
]


def lie(rng, header):
    """A header with one to three values replaced, exchanged, removed or added."""
    header = json.loads(json.dumps(header))
    for _ in range(rng.randint(1, 3)):
        blobs = header.get("blobs")
        of_blob = isinstance(blobs, list) and blobs and rng.random() < 0.7
        place = rng.choice(blobs) if of_blob else rng.choice([header, header.get("model", header)])
        if not isinstance(place, dict) or not place:
            continue
        name, kind = rng.choice(sorted(place)), rng.random()
        if kind < 0.55:
            place[name] = rng.choice(NUMBERS)
        elif kind < 0.7 and isinstance(place[name], int):
            place[name] += rng.choice([-1, 1, 64, 2**20])
        elif kind < 0.8:
            del place[name]
        elif kind < 0.9 and of_blob:
            place[name] = rng.choice(blobs).get(name, 7)
        elif of_blob:
            blobs.append(place) if rng.random() < 0.5 else rng.shuffle(blobs)
    return header


def mutated(rng, data, header, blobs):
    """One hostile export: raw damage, or a lie with right checksums, so that deeper checks are reached."""
    kind = rng.random()
    if kind < 0.45:
        bad = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            reach = rng.choice([20, len(data) - len(blobs), len(data)])
            bad[rng.randrange(reach)] = rng.randrange(256)
        return bytes(bad)
    if kind < 0.6:
        cut, more = rng.randrange(len(data)), rng.randbytes(rng.randint(0, 40))
        return data[:cut] + more + data[cut + rng.randint(0, 40) :]
    if kind < 0.8:
        return sealed(text(lie(rng, header)), blobs)
    if kind < 0.9:
        head = bytearray(text(header))
        for _ in range(rng.randint(1, 3)):
            head[rng.randrange(len(head))] = rng.choice(b'0123456789abcdef{}[],:"-.eE \\u')
        return sealed(bytes(head), blobs)
    # Pages of another request, other rows or garbage, each with its right sha256.
    damaged = json.loads(json.dumps(header))
    pages = bytearray(blobs)
    pages[rng.randrange(len(pages))] ^= 1 << rng.randrange(8)
    at = 0
    for blob in damaged["blobs"]:
        count = (
            -(-blob["end"] // blob["rows"]) - blob["start"] // blob["rows"]
            if blob["end"] > blob["start"]
            else 0
        )
        blob["sha256"] = hashlib.sha256(pages[at : at + count * blob["page_bytes"]]).hexdigest()
        at += count * blob["page_bytes"]
    return sealed(text(damaged), bytes(pages))


def attack(count, seed):
    """Feed `count` mutated exports to a cache that holds other requests; return what became of them."""
    rng = random.Random(seed)
    source, _ = made(5, layers=[0, 1])
    data = source.export("a").to_bytes()
    header, blobs = parts(data)
    target, histories = made(0, layers=[0, 1], max_requests=3)
    grow(target, histories, {"x": 40, "y": 131})
    before = {request: target.digest(request) for request in "xy"}
    start, outcome = books(target), {"refused": 0, "imported": 0, "unread": 0}
    for number in range(count):
        try:
            export = RequestExport.from_bytes(mutated(rng, data, header, blobs))
        except CacheError:
            outcome["unread"] += 1
            continue
        try:
            target.import_(export, "z")
        except CacheError:
            outcome["refused"] += 1
        else:
            outcome["imported"] += 1
            assert target.length("z") == 5
            target.free("z")
        if number % 50 == 0:
            assert books(target)[0] == start[0] and set(target.requests) == {"x", "y"}
            target.check_invariants()
    assert {request: target.digest(request) for request in "xy"} == before
    for request in "xy":
        assert_bytes(target, request, histories[request])
    return outcome


def test_hostile_exports():
    outcome = attack(4_000, seed=1)
    assert all(outcome.values()), outcome


@pytest.mark.slow
def test_100000_hostile_exports_in_bounded_time():
    began = time.perf_counter()
    outcome = attack(100_000, seed=2)
    assert all(outcome.values()) and sum(outcome.values()) == 100_000
    assert time.perf_counter() - began < 300
