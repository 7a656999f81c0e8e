"""Ragged lists, pools of page size 1, block caches, and joining parts of a softmax."""

from __future__ import annotations

import aiter_worlds as worlds
import torch

from dsv4core.layout import get_layout
from dsv4core_rocm.aiter import lists
from dsv4core_rocm.aiter.partials import join


def test_ragged() -> None:
    listed = torch.tensor([[4, -1, 9, 2], [7, 7, 0, 0], [1, 2, 3, 4], [-5, 8, 99, 1]], dtype=torch.int32)
    flat, starts = lists.ragged(listed, torch.tensor([4, 2, 0, 4], dtype=torch.int32), 50)
    assert starts.tolist() == [0, 3, 5, 5, 7] and starts.dtype == flat.dtype == torch.int32
    assert flat[:7].tolist() == [4, 9, 2, 7, 7, 8, 1]


def test_ragged_fills_up_with_the_sentinel() -> None:
    flat, starts = lists.ragged(torch.tensor([[3], [5]]), torch.tensor([0, 1], dtype=torch.int32), 9, least=2)
    assert starts.tolist() == [0, 2, 4] and flat[:4].tolist() == [-1, -1, 5, -1]


def test_ragged_without_columns() -> None:
    flat, starts = lists.ragged(torch.zeros(3, 0, dtype=torch.int32), torch.zeros(3, dtype=torch.int32), 9)
    assert starts.tolist() == [0, 0, 0, 0] and not flat.numel()


def test_a_pool_has_the_rows_of_the_pages() -> None:
    pages = worlds.pages("bf16_row", 5, 4, 2048, 1)
    slots = torch.tensor([0, 3, 4, 19, -1], dtype=torch.int32)
    found = lists.pool(pages, 4)[lists.pool_slots(slots, 4, lists.pool_rows(pages))[:4].long()]
    layout = get_layout("bf16_row")
    assert torch.equal(found, layout.decode(layout.read(pages, slots[:4], 4)))
    assert lists.pool_slots(slots, 4, 6).tolist() == [0, 3, 6, 27, -1]


def test_a_block_cache_is_the_pages_themselves() -> None:
    pages = worlds.pages("fp8_ds_mla", 3, 4, 64, 1)[1:]
    cache = lists.blocks(pages, 4, "fp8_ds_mla")
    assert tuple(cache.shape) == (2, 4, 584) and cache.data_ptr() == pages.data_ptr()
    assert torch.equal(cache.reshape(2, -1), pages[:, : 4 * 584])


def test_joining_parts_is_the_softmax_of_everything() -> None:
    g = torch.Generator().manual_seed(1)
    scores, values = torch.randn(2, 3, 12, generator=g) * 9, torch.randn(12, 512, generator=g)
    sink, parts = torch.tensor([0.5, 1e30, -1e30]), []
    for cut in (slice(0, 5), slice(5, 12)):
        s = scores[..., cut] / torch.log(torch.tensor(2.0))
        m = s.amax(-1)
        p = torch.exp2(s - m.unsqueeze(-1))
        p[1], m[1] = 0, 7.0  # the second token attends to nothing, and its bounds mean nothing
        parts.append(
            (torch.einsum("thn,nd->thd", p, values[cut]).unsqueeze(1), m[:, None], p.sum(-1)[:, None])
        )
    out = torch.full((2, 3, 512), 3.0)
    lse = join(parts, sink, out)
    assert torch.allclose(lse[0], scores[0].logsumexp(-1)) and bool((lse[1] == torch.inf).all())
    p = torch.softmax(torch.cat((scores[0], sink.unsqueeze(1)), dim=1), dim=1)[:, :-1]
    assert torch.allclose(out[0], p @ values, atol=1e-5) and not out[1].any()
