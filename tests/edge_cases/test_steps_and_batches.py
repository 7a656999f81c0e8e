"""Edge cases 16-19 and 23: padding, chunks, single steps, the window's wrap, batches; and threads."""

from __future__ import annotations

import pytest
import torch
from harness import (
    ALL_CANDIDATES,
    Rig,
    assert_same_bytes,
    chunks_of,
    differing_rows,
    ops,
    relative,
    rig,
    values,
)

from dsv4core.layout import get_layout
from dsv4core.numerics.tables import cos_sin
from dsv4core_conformance.reference.counter import hashed_words

KINDS = ("swa", "csa", "hca")
PROFILES = ("math", "vllm")


def complete(kind: str, profile: str) -> Rig:
    return rig(kind, profile, index_topk=ALL_CANDIDATES)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("kind", KINDS)
def test_16_padding_tokens(kind: str, profile: str) -> None:
    layer = complete(kind, profile)
    hidden, other = layer.hidden(133), layer.hidden(9, stream=2)
    plain, padded = layer.cache(), layer.cache()
    steps = [
        ({"a": hidden[:130], "b": other[:5]}, 160),
        ({"a": hidden[130:131], "b": other[5:6]}, 8),
        ({"a": hidden[131:132], "b": other[6:]}, 7),
        ({"b": other[:0].new_zeros(1, other.shape[1])}, None),
    ]
    for parts, pad_to in steps:
        expected = layer.step(plain, parts)
        got = layer.step(padded, parts, pad_to)
        assert torch.equal(got[: len(expected)], expected), "padding changes no real row"
        assert torch.isfinite(got.float()).all()
        for a, b in zip(layer.storage(plain), layer.storage(padded), strict=True):
            assert torch.equal(a, b), "padding writes nothing"


def test_16_padding_tokens_in_the_cache_ops() -> None:
    """Padding has position 0 or any other, a negative slot or none at all; here it sits on window ends."""
    positions = torch.tensor([3, 7, 3, 7, 11])
    slots = torch.tensor([3, -1, -5, 7])  # the fifth token lies behind the mapping
    requests = torch.zeros(5, dtype=torch.int32)
    table = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    state = torch.zeros(3, 4, 512)
    kv, score = values(5, 256, stream=71), values(5, 256, stream=72)
    ops().save_partial_states(kv, score, values(4, 256, stream=73), positions, state, slots, ratio=4)
    written = (state.view(12, 512) != 0).any(dim=1).nonzero()[:, 0].tolist()
    assert written == [3, 7]
    entry_slots = ops().compressed_slot_mapping(positions, slots, requests, table, ratio=4, rows=64)
    assert entry_slots.tolist() == [0, -1, -1, 1, -1]
    page = torch.zeros(1, 64 * 512, dtype=torch.uint8)
    ops().compress_norm_rope_store(
        state, positions, requests, slots, table, cos_sin(1.6e5, None, 16), torch.ones(128), page,
        torch.tensor([0, 10, 11, 1, 12]), ratio=4, head_dim=128, rows=64, layout="index_f32", eps=1e-6,
        rotate="none",
    )  # fmt: skip
    rows = get_layout("index_f32").decode_pages(page, 64)[0]
    assert rows.any(dim=1).nonzero()[:, 0].tolist() == [0, 1]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("sizes", [(1, 5, 3, 17, 2, 131, 64), (127, 1), (128,), (4, 3), (64,), (2, 2, 126)])
@pytest.mark.parametrize("kind", KINDS)
def test_17_any_chunk_sizes(kind: str, sizes: tuple[int, ...], profile: str) -> None:
    layer = complete(kind, profile)
    hidden = layer.hidden(265)
    cache, once = layer.cache(), layer.cache()
    chunked = layer.run(hidden, chunks_of(265, sizes), cache)
    whole = layer.run(hidden, cache=once)
    assert_same_bytes(cache.snapshot("a"), once.snapshot("a"))
    assert cache.digest("a") == once.digest("a")
    assert relative(chunked, whole) < (2e-6 if profile == "math" else 2e-3)


@pytest.mark.parametrize("draw", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_17_drawn_chunk_sizes(kind: str, draw: int) -> None:
    layer = complete(kind, "vllm")
    hidden = layer.hidden(265)
    sizes = [int(word % (7 if draw % 2 else 90)) + 1 for word in hashed_words(300, stream=draw)]
    cache, once = layer.cache(), layer.cache()
    layer.run(hidden, chunks_of(265, sizes), cache)
    layer.run(hidden, cache=once)
    assert_same_bytes(cache.snapshot("a"), once.snapshot("a"))


@pytest.mark.parametrize("kind", KINDS)
def test_17_chunks_equal_the_reference(kind: str) -> None:
    layer = complete(kind, "math")
    hidden = layer.hidden(265)
    out = layer.run(hidden, chunks_of(265, (1, 5, 3, 17, 2, 131, 64)))
    assert relative(out, layer.trace(hidden)["out"]) < 2e-6


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    ("kind", "start", "length"),
    [("swa", 1, 20), ("swa", 120, 140), ("csa", 1, 20), ("csa", 120, 140), ("hca", 1, 20), ("hca", 120, 140)],
)
def test_18_decode_equals_prefill(kind: str, start: int, length: int, profile: str) -> None:
    layer = complete(kind, profile)
    hidden = layer.hidden(length)
    cache, once = layer.cache(), layer.cache()
    stepped = layer.run(hidden, [start, *[1] * (length - start)], cache)
    whole = layer.run(hidden, cache=once)
    assert_same_bytes(cache.snapshot("a"), once.snapshot("a"))
    assert relative(stepped[start:], whole[start:]) < (2e-6 if profile == "math" else 2e-3)


def test_18_decode_with_an_active_selection() -> None:
    layer = rig("csa", "vllm")  # top-k 4 of up to 60
    hidden = layer.hidden(240)
    cache, once = layer.cache(), layer.cache()
    stepped = layer.run(hidden, [200, *[1] * 40], cache)
    whole = layer.run(hidden, cache=once)
    assert_same_bytes(cache.snapshot("a"), once.snapshot("a"))
    assert relative(stepped[200:], whole[200:]) < 2e-3


@pytest.mark.parametrize("kind", KINDS)
def test_19_the_window_wraps(kind: str) -> None:
    layer = complete(kind, "math")
    hidden = layer.hidden(258)
    edges = [127, 128, 129, 255, 256]
    expected = layer.trace(hidden, edges)["out"]
    assert relative(layer.run(hidden)[edges], expected) < 2e-6
    assert relative(layer.run(hidden, [126, 1, 1, 1, 1, 124, 1, 1, 1, 1])[edges], expected) < 2e-6


@pytest.mark.parametrize(
    ("token", "chunks"),
    [
        (100, [258]),
        (0, [258]),
        (128, [258]),
        (127, [120, *[1] * 138]),
        (1, [120, *[1] * 138]),
        (5, [64] * 4 + [2]),
    ],
)
def test_19_a_token_is_seen_from_exactly_128_positions(token: int, chunks: list[int]) -> None:
    layer = rig("swa", "vllm")
    hidden = layer.hidden(258)
    changed = hidden.clone()
    changed[token] *= -1
    seen = differing_rows(layer.run(hidden, chunks), layer.run(changed, chunks))
    assert seen == list(range(token, min(token + 128, 258)))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("kind", KINDS)
def test_23_a_request_alone_equals_itself_in_a_batch(kind: str, profile: str) -> None:
    layer = complete(kind, profile)
    # Prefills of different lengths, then decodes next to a prefill, then decodes only.
    lengths = {"a": [3, 1, 1], "b": [130, 1, 1], "c": [0, 41, 1], "d": [67, 5, 1]}
    hidden = {name: layer.hidden(sum(parts), stream=ord(name)) for name, parts in lengths.items()}
    cache = layer.cache(1024, requests=4)
    together: dict[str, list[torch.Tensor]] = {name: [] for name in lengths}
    done = dict.fromkeys(lengths, 0)
    for step in range(3):
        counts = {name: parts[step] for name, parts in lengths.items() if parts[step]}
        parts = {name: hidden[name][done[name] : done[name] + n] for name, n in counts.items()}
        for (name, n), rows in zip(
            counts.items(), layer.step(cache, parts).split(list(counts.values())), strict=True
        ):
            together[name].append(rows)
            done[name] += n
    for name, parts in lengths.items():
        alone = layer.cache(1024, requests=4)
        out = torch.cat(
            [layer.step(alone, {name: part}) for part in hidden[name].split([n for n in parts if n])]
        )
        assert torch.equal(torch.cat(together[name]), out), name
        assert_same_bytes(cache.snapshot(name), alone.snapshot(name))


@pytest.mark.parametrize("kind", KINDS)
def test_23_more_prefills_than_fit_one_workspace(kind: str) -> None:
    layer = complete(kind, "vllm")
    hidden = [layer.hidden(n, stream=n) for n in (2, 140, 9, 33, 4, 129)]
    cache = layer.cache(1024, requests=6)
    got = layer.step(cache, {str(i): part for i, part in enumerate(hidden)}).split(
        [len(part) for part in hidden]
    )
    for part, rows in zip(hidden, got, strict=True):
        assert torch.equal(rows, layer.run(part))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("kind", KINDS)
def test_cache_bytes_do_not_depend_on_threads(kind: str, profile: str) -> None:
    layer = complete(kind, profile)
    hidden = layer.hidden(141)
    before = torch.get_num_threads()
    snapshots = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            cache = layer.cache()
            layer.run(hidden, [131, 1, 9], cache)
            snapshots.append(cache.snapshot("a"))
    finally:
        torch.set_num_threads(before)
    assert_same_bytes(*snapshots)
