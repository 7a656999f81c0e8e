"""RoPE tables (CA1 rule 6): fp32 [positions, 64], 32 cosines then 32 sines, built on the host and copied."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dsv4core.config import YarnConfig

ROPE_DIM = 64
PAIRS = ROPE_DIM // 2
MIN_ROWS = 4096
CHUNK_ROWS = 4096  # bounds the doubles that exist at one time
HOST = torch.device("cpu")  # whatever device and type an engine has made torch's default

_tables: dict[tuple[float, YarnConfig | None, torch.device], Tensor] = {}


def _correction_dim(theta: float, yarn: YarnConfig, rotations: float) -> float:
    """The (fractional) pair index that turns `rotations` times over the original length."""
    turns = yarn.original_max_position_embeddings / (rotations * 2 * math.pi)
    return ROPE_DIM * math.log(turns) / (2 * math.log(theta))


def inv_freq(theta: float, yarn: YarnConfig | None) -> Tensor:
    """Radians per position of the 32 pairs; with `yarn` the slow pairs are divided by its factor.

    Shapes: -> f32 [32]. The power is rounded to fp32 before the division, as CA1 rule 6 wants: a chain in
    double gives other bits. There is no magnitude factor.
    """
    exact = [theta ** (i / PAIRS) for i in range(PAIRS)]
    power = torch.tensor(exact, dtype=torch.float64, device=HOST).float()
    plain = 1.0 / power
    if yarn is None:
        return plain
    low = max(math.floor(_correction_dim(theta, yarn, yarn.beta_fast)), 0)
    high = min(math.ceil(_correction_dim(theta, yarn, yarn.beta_slow)), ROPE_DIM - 1)
    width = float(high - low) or 0.001
    ramp = ((torch.arange(PAIRS, dtype=torch.float32, device=HOST) - low) / width).clamp(0.0, 1.0)
    keep = 1.0 - ramp
    slow = 1.0 / (yarn.factor * power)
    return slow * (1.0 - keep) + plain * keep


def _rows(frequencies: Tensor, start: int, stop: int) -> Tensor:
    """Rows start..stop-1. The angle is an fp32 product; its cosine and sine are taken in double."""
    positions = torch.arange(start, stop, dtype=torch.float32, device=HOST)
    angle = (positions[:, None] * frequencies).double()
    return torch.cat((angle.cos(), angle.sin()), dim=-1).float()


def cos_sin(theta: float, yarn: YarnConfig | None, rows: int, device: torch.device | str = "cpu") -> Tensor:
    """The first `rows` rows of a table.

    Shapes: -> f32 [rows, 64]. One table per (theta, yarn) and device is kept for the process, for all layers
    together: 256 MiB for a million positions. It grows by doubling, and rows that exist keep their bits. The
    result is a view of it: do not write to it.
    """
    key = (theta, yarn, torch.device(device))
    have = _tables.get(key)
    if have is None or have.shape[0] < rows:
        wanted = max(MIN_ROWS, 1 << max(rows - 1, 0).bit_length())
        have = _grown(theta, yarn, have, wanted) if key[2] == HOST else cos_sin(theta, yarn, wanted)
        _tables[key] = have = have.to(key[2])
    return have[:rows]


def _grown(theta: float, yarn: YarnConfig | None, have: Tensor | None, rows: int) -> Tensor:
    """A table of more rows on the host, with those that there are."""
    count = 0 if have is None else have.shape[0]
    frequencies = inv_freq(theta, yarn)
    grown = torch.empty(rows, ROPE_DIM, dtype=torch.float32, device=HOST)
    if have is not None:
        grown[:count] = have
    for start in range(count, rows, CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, rows)
        grown[start:stop] = _rows(frequencies, start, stop)
    return grown
