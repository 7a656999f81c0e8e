"""Tensor parallelism: which tensors of a layer are cut, where, and the one sum that joins the ranks.

Heads are cut with their groups of the output projection; everything in front of them, and the indexer, is the
same on every rank, so every rank writes the same cache bytes and chooses the same entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor

from dsv4core.config import AttentionConfig
from dsv4core.errors import ConfigError, WeightsError
from dsv4core.linear import QuantisedWeight, Weight, WeightFormat
from dsv4core.tensor_names import ALL_NAMES, FACTOR, SCALE

# Name -> dimension of the matrix of which a rank holds a share. wo_b is cut along its inputs: every rank has
# a summand of the output.
SLICED = {"wq_b": 0, "wo_a": 0, "wo_b": 1, "attn_sink": 0}
REPLICATED = tuple(name for name in ALL_NAMES if name not in SLICED)


@dataclass(frozen=True)
class TensorParallel:
    """Rank `rank` of `size` that share the heads of a layer.

    `group` is a process group of `torch.distributed`, of any of its backends (None: the default group).
    """

    rank: int
    size: int
    group: Any = None

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ConfigError(f"rank {self.rank} of {self.size} does not exist")

    @classmethod
    def of(cls, group: Any = None) -> TensorParallel:
        """The place of this process in an initialised group."""
        return cls(dist.get_rank(group), dist.get_world_size(group), group)

    def local(self, config: AttentionConfig) -> AttentionConfig:
        """What one rank computes: its heads and groups. Raises ConfigError where they cannot be shared."""
        if config.o_groups % self.size:
            raise ConfigError(
                f"{self.size} ranks cannot share the {config.o_groups} groups of wo_a and wo_b (o_groups);"
                " type a number of ranks that divides them"
            )
        return config.model_copy(
            update={
                "num_attention_heads": config.num_attention_heads // self.size,
                "o_groups": config.o_groups // self.size,
            }
        )

    def span(self, size: int) -> tuple[int, int]:
        """First and behind the last of this rank's share of `size` equal things."""
        return self.rank * size // self.size, (self.rank + 1) * size // self.size

    def add(self, partial: Tensor) -> Tensor:
        """The sum over the ranks, the same bits on every one.

        It runs in f32: rounded to bf16 on the way, 8 ranks would be further from one process than a product
        may be (3.6e-3 with 4 ranks, of 4e-3).
        """
        if self.size == 1:
            return partial
        total = partial.float()
        dist.all_reduce(total, group=self.group)  # pyright: ignore[reportUnknownMemberType]
        return total.to(partial.dtype)


@dataclass(frozen=True)
class Part:
    """Rows and columns of a stored tensor that a rank reads, as (first, behind the last)."""

    rows: tuple[int, int]
    columns: tuple[int, int] | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """A copy of the part, so that the rest can be given back."""
        found = tensor[slice(*self.rows)]
        return (found if self.columns is None else found[:, slice(*self.columns)]).clone()


def part(
    name: str, suffix: str, shape: tuple[int, ...], stored: WeightFormat | None, place: TensorParallel
) -> Part | None:
    """What rank `place` holds of a stored tensor; None for all of it.

    `shape` is that of the whole matrix, `suffix` "" for values or codes, ".scale" or ".scale_2". Raises
    WeightsError where shares would not be equal or the cut would go through a block of scales.
    """
    cut = SLICED.get(name)
    if cut is None or suffix == FACTOR or place.size == 1:
        return None
    if shape[cut] % place.size:
        raise WeightsError(
            f"{name} {list(shape)} cannot be shared by {place.size} ranks: {shape[cut]} in dimension {cut} is"
            f" no multiple of {place.size}; type a number of ranks that divides it"
        )
    first, last = place.span(shape[cut])
    step = _step(stored, suffix, cut)
    if first % step or (last % step and last != shape[cut]):
        raise WeightsError(
            f"{name} {list(shape)} is cut at {first} and {last} of dimension {cut} for rank {place.rank} of"
            f" {place.size}, but {step} values share a {'scale' if suffix else 'code'}; use fewer ranks"
        )
    spans = [(0, -(-size // _step(stored, suffix, d))) for d, size in enumerate(shape)]
    spans[cut] = (first // step, -(-last // step))
    return Part(spans[0], spans[1] if len(shape) > 1 else None)


def _step(stored: WeightFormat | None, suffix: str, dimension: int) -> int:
    """Values of the matrix behind each other that one stored value stands for."""
    if stored is None:
        return 1
    if suffix == SCALE:
        return (stored.block or (1, 1))[dimension]
    return stored.pack if dimension == 1 else 1


def shard(name: str, weight: Weight, place: TensorParallel) -> Weight:
    """A rank's share of a tensor, by its canonical name; the tensor itself where it is replicated."""
    if name not in SLICED or place.size == 1:
        return weight
    shape = tuple(weight.shape)
    if isinstance(weight, Tensor):
        return _cut(weight, part(name, "", shape, None, place))
    stored = weight.format
    return QuantisedWeight(
        _cut(weight.weight, part(name, "", shape, stored, place)),
        _cut(weight.scales, part(name, SCALE, shape, stored, place)),
        weight.global_scale,
    )


def _cut(tensor: Tensor, piece: Part | None) -> Tensor:
    return tensor if piece is None else piece.of(tensor)
