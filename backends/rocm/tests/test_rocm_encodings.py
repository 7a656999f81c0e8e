"""A call over two encodings, as gfx942 engines have them: window pages FNUZ, compressed pages OCP."""

from __future__ import annotations

from typing import Any

import aiter_worlds as worlds
import pytest
import torch

from dsv4core.backend import Backend
from dsv4core.errors import OpArgumentError
from dsv4core.layout import get_layout
from dsv4core_rocm.backend import RocmBackend
from dsv4core_rocm.plugin import SPEC


@pytest.fixture(scope="module")
def backend() -> Backend:
    own = RocmBackend({"aiter": "off"})
    return Backend(SPEC, own, own.ops)


def mixed() -> dict[str, Any]:
    call = worlds.decode("fp8_ds_mla_fnuz", "fp8_ds_mla")
    return {**call, "swa_slots": call["swa_slots"].clamp(max=79), "attn_sink": torch.zeros(worlds.HEADS)}


def test_each_cache_is_read_in_its_own_encoding(backend: Backend) -> None:
    call = mixed()
    lse, out = worlds.expected("sparse_decode", call)
    own = worlds.copied(call)
    assert torch.allclose(backend.ops.sparse_decode(**own), lse, rtol=1e-5, atol=1e-5)
    assert out is not None and worlds.close(own["out"], out)


@pytest.mark.parametrize("layout", ["layout", "extra_layout"])
def test_one_flag_for_both_caches_gives_something_else(backend: Backend, layout: str) -> None:
    call = mixed()
    out = worlds.expected("sparse_decode", call)[1]
    wrong = worlds.copied(call)
    wrong[layout] = wrong["layout" if layout == "extra_layout" else "extra_layout"]
    backend.ops.sparse_decode(**wrong)
    assert out is not None and not worlds.close(wrong["out"], out)


def test_a_window_of_fnuz_codes_is_half_of_what_ocp_reads() -> None:
    page = worlds.pages("fp8_ds_mla_fnuz", 1, 4, 0, 3)
    fnuz, ocp = (
        get_layout(name).decode_pages(page, 4)[..., :448] for name in ("fp8_ds_mla_fnuz", "fp8_ds_mla")
    )
    assert torch.equal(ocp.float(), 2 * fnuz.float())


def test_codes_of_the_other_dialect_are_a_type_error(backend: Backend) -> None:
    call = worlds.logits()
    with pytest.raises(OpArgumentError, match=r"'q' must be torch\.float8_e4m3fn"):
        backend.ops.indexer_logits(**{**call, "q": call["q"].view(torch.float8_e4m3fnuz)})
    for layout in ("fp8_ds_mla_fnuz", "index_fp8_tiled"):
        with pytest.raises(OpArgumentError, match="layout"):
            backend.ops.indexer_logits(**{**call, "layout": layout})
