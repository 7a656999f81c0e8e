"""Closing a window: pooled, normalised, rotated, stored; every byte of the pages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from op_reference import F32, INDEX, MAIN, Pages, angles, array, bf16, hadamard, pool, rms_norm, rope

from dsv4core.errors import OpArgumentError

TABLE = angles(1300)
CASES = [*((r, 512, layout) for r in (4, 128) for layout in MAIN), *((4, 128, layout) for layout in INDEX)]
STATE_ROWS = {4: 4, 128: 8}
ENTRY_ROWS = {4: 64, 128: 2}


class World:
    """Requests whose states lie in shuffled pages, some with padding between pages."""

    def __init__(
        self, rng, ratio: int, head_dim: int, layout: str, *, lengths=(9, 300), lead=0, gap=0
    ) -> None:
        self.ratio, self.head_dim, self.layout = ratio, head_dim, layout
        self.width = head_dim * (2 if ratio == 4 else 1)
        self.rows = STATE_ROWS[ratio]
        columns = -(-max(lengths) // self.rows)
        count = columns * len(lengths) + 1
        pitch = self.rows * 2 * self.width + gap
        self.state = torch.full((count * pitch,), torch.nan).as_strided(
            (count, self.rows, 2 * self.width), (pitch, 2 * self.width, 1)
        )
        # Request in columns: the table is not contiguous.
        self.table = torch.from_numpy(
            (rng.permutation(count - 1) + 1).astype(np.int32).reshape(columns, len(lengths)).T
        )
        self.history = []
        for b, n in enumerate(lengths):
            kv = (rng.standard_normal((n, self.width)) * 0.7).astype(F32)
            score = (rng.standard_normal((n, self.width)) * 2).astype(F32)
            self.history.append((kv, score))
            for p in range(n):
                self.state[int(self.table[b, p // self.rows]), p % self.rows] = torch.from_numpy(
                    np.concatenate((kv[p], score[p]))
                )
        self.weight = torch.from_numpy(rng.standard_normal(head_dim).astype(F32))
        self.pages = Pages(layout, 40, ENTRY_ROWS[ratio], lead=lead, gap=gap)

    def entry(self, b: int, p: int) -> np.ndarray:
        """The rotated fp32 entry that ends at position p, by the text of CA1."""
        kv, score = self.history[b]
        d, w = self.head_dim, self.ratio * self.width // self.head_dim
        values, scores = np.zeros((w, d), F32), np.full((w, d), -np.inf, F32)
        for j in range(w):
            source = p - w + 1 + j
            columns = slice(0, d) if j < self.ratio else slice(d, 2 * d)
            if source >= 0:
                values[j], scores[j] = kv[source, columns], score[source, columns]
        n = rms_norm(pool(values, scores), array(self.weight), 1e-6)
        n = rope(n, TABLE[p - self.ratio + 1])
        if "hadamard" in self.layout:
            return hadamard(bf16(n))
        return n if self.layout in ("f32_row", "index_f32") else bf16(n)  # also before fp8_row

    def call(self, ops, positions, requests, slots, kv_slots, **change) -> None:
        keywords = {
            "ratio": self.ratio, "head_dim": self.head_dim, "rows": self.pages.rows,
            "layout": self.layout, "eps": 1e-6,
            "rotate": "hadamard" if "hadamard" in self.layout else "none", **change,
        }  # fmt: skip
        ops.compress_norm_rope_store(
            self.state, torch.tensor(positions, dtype=torch.int64), torch.tensor(requests, dtype=torch.int32),
            torch.tensor(slots, dtype=torch.int64), self.table, torch.from_numpy(TABLE), self.weight,
            self.pages.tensor, torch.tensor(kv_slots, dtype=torch.int64), **keywords,
        )  # fmt: skip


@pytest.mark.parametrize(("lead", "gap"), [(0, 0), (140, 44)])
@pytest.mark.parametrize(("ratio", "head_dim", "layout"), CASES)
def test_bits(ops, rng, ratio: int, head_dim: int, layout: str, lead: int, gap: int) -> None:
    world = World(rng, ratio, head_dim, layout, lead=lead, gap=gap)
    if head_dim == 128 or gap:
        world.weight = world.weight.to(torch.bfloat16)
    last = 2 * ratio - 1
    rows = [  # request, position, own slot, entry slot; only the marked ones are stored
        (1, ratio - 1, 0, 5, True),  # first window: for ratio 4 the older half is before the start
        (1, last, 3, 0, True),
        (0, ratio - 2, 1, 7, False),  # before a boundary
        (0, 3, 1, -1, False),
        (1, last, -1, 8, False),
        (1, last, -5, 9, False),
        (1, 300 // ratio * ratio - 1, 2**40, 78, True),
        (1, 300 // ratio * ratio - 2, 4, 10, False),
        (1, last, 4, -(2**62), False),
        (1, last, 0, 11, False),  # behind slot_mapping
    ]
    for b, p, _, slot, stored in rows:
        if stored:
            world.pages.put(slot, world.entry(b, p))
    requests, positions, slots, kv_slots, _ = zip(*rows, strict=True)
    world.call(ops, positions, requests, slots[:-1], kv_slots)
    world.pages.check()


def test_short_first_window_of_overlap(ops, rng) -> None:
    world = World(rng, 4, 512, "fp8_ds_mla", lengths=(4,))
    world.pages.put(0, world.entry(0, 3))
    world.call(ops, [3], [0], [0], [0])
    world.pages.check()
    kv, score = world.history[0]
    four = pool(
        np.vstack((np.zeros((4, 512), F32), kv[:, 512:])),
        np.vstack((np.full((4, 512), -np.inf, F32), score[:, 512:])),
    )
    soft = np.exp(score[:, 512:].astype(np.float64))
    assert np.allclose(four, (soft * kv[:, 512:]).sum(0) / soft.sum(0), rtol=1e-5, atol=1e-6)


def test_nothing_closes(ops, rng) -> None:
    world = World(rng, 4, 512, "fp8_ds_mla", lengths=(9,))
    world.call(ops, [], [], [], [])
    world.call(ops, [3], [0], [], [0])
    world.call(ops, [0, 1, 2, 4, 5, 6, 8], [0] * 7, [0] * 7, [0] * 7)
    world.pages.check()


def test_rows_alone_and_in_a_batch(ops, rng) -> None:
    world = World(rng, 4, 128, "index_mxfp4", lengths=(140,))
    ends = list(range(3, 140, 4))
    world.call(ops, ends, [0] * len(ends), ends, list(range(len(ends))))
    together = world.pages.store.clone()
    world.pages.store.fill_(0xA5)
    for j, p in enumerate(ends):
        world.call(ops, [p], [0], [p], [j])
    assert torch.equal(world.pages.store, together)


def test_refusals(ops, rng) -> None:
    world = World(rng, 4, 128, "index_mxfp4", lengths=(16,))
    good = {"positions": [7], "requests": [0], "slots": [0], "kv_slots": [0]}
    for argument, change in [
        ("rotate", {"rotate": "hadamard"}), ("head_dim", {"head_dim": 512}), ("ratio", {"ratio": 8}),
        ("state_cache", {"ratio": 128}), ("layout", {"layout": "state_f32"}),
        ("kv_slot_mapping", {"kv_slots": [40 * 64]}),
        ("token_to_req", {"requests": [1]}), ("positions", {"positions": [1303]}),
        ("block_table", {"positions": [23]}), ("slot_mapping", {"slots": [0, 1]}),
    ]:  # fmt: skip
        with pytest.raises(OpArgumentError) as caught:
            world.call(ops, **{**good, **change})
        assert caught.value.argument in (argument, "norm_weight" if argument == "head_dim" else argument)
    table = world.table.clone()
    world.table = torch.full_like(table, -1)
    with pytest.raises(OpArgumentError, match="block_table"):
        world.call(ops, **good)
    world.table = torch.full_like(table, world.state.shape[0])
    with pytest.raises(OpArgumentError, match="block_table"):
        world.call(ops, **good)
    world.pages.check()
    hadamard_pages = World(rng, 4, 128, "index_mxfp4_hadamard", lengths=(16,))
    with pytest.raises(OpArgumentError, match="rotate"):
        hadamard_pages.call(ops, **good, rotate="none")
