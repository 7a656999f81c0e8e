from __future__ import annotations

import against
import pytest
import torch

from dsv4core.errors import OpArgumentError

OP = "dequantize_and_gather_k_cache"


@pytest.mark.parametrize("config", against.MAIN)
@pytest.mark.parametrize("lead", [0, 3])
def test_values(config: str, lead: int) -> None:
    given = against.arguments(OP, config, tokens=3, context=70)
    given["k_cache"] = against.in_parent(given["k_cache"], lead, 2 * lead)
    given["block_table"] = against.spread(given["block_table"])
    given["seq_lens"] = against.spread(torch.tensor([70, 65, 1], dtype=torch.int32))
    given["gather_lens"] = torch.tensor([70, 3, 0], dtype=torch.int32)
    given["out"] = torch.full_like(given["out"], 7.0)
    against.exact(OP, given)
    against.exact(OP, {**given, "gather_lens": None})


def test_every_code_and_scale() -> None:
    raw = torch.randint(0, 256, (2, 584 * 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    raw[0, : 576 * 64].view(64, 576)[:, :448] = torch.arange(448).to(torch.uint8)
    tails = raw[:, 576 * 64 :].view(2, 64, 8)
    tails[0, :, 0] = torch.arange(64).to(torch.uint8) * 4 + 1
    tails[0, :, 1] = torch.arange(64).to(torch.uint8) + 191
    given = against.arguments(OP, tokens=1, context=128)
    given |= {"k_cache": raw, "block_table": torch.tensor([[1, 0]], dtype=torch.int32), "gather_lens": None}
    mine, theirs = dict(given), dict(given)
    mine["out"], theirs["out"] = torch.zeros(1, 130, 512).bfloat16(), torch.zeros(1, 130, 512).bfloat16()
    against.kernel(OP)(**mine)
    against.OPS[OP].body(**theirs)
    a, b = mine["out"], theirs["out"]
    assert torch.equal(a.isnan(), b.isnan())
    assert torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize(
    ("name", "value"),
    [("gather_lens", torch.tensor([41, 1, 1, 1, 1])), ("block_table", torch.full((5, 1), -1))],
)
def test_refusals(name: str, value: torch.Tensor) -> None:
    given = against.arguments(OP)
    with pytest.raises(OpArgumentError, match=name):
        against.kernel(OP)(**{**given, name: value.to(torch.int32)})


def test_unchecked_holes_read_as_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV4CORE_CHECK", "0")
    given = against.arguments(OP)
    given["block_table"][1] = -1
    given["block_table"][2] = 1000
    against.kernel(OP)(**given)
    assert not given["out"][1:3].any()
    assert given["out"][3].any()
