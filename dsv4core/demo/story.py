"""The two requests of the demo, the steps they take, and the text they are made of."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from dsv4core.synthetic import hash_normal

SEED = 20260424
DECODED = 16
# Long enough that 656 entries compete for 512 places; the chunks line up with neither 4, 64 nor 128.
LONG_CHUNKS = (611, 1021, 3, 973)
SHORT_CHUNKS = (45, 39)
LONG, SHORT = "long", "short"
EMBEDDING_STEP = 0.125


@dataclass(frozen=True)
class Story:
    """Requests by name: their text as bytes. `lengths` counts tokens."""

    texts: dict[str, bytes]

    @property
    def lengths(self) -> dict[str, int]:
        """Tokens of every request."""
        return {name: len(text) for name, text in self.texts.items()}

    @property
    def steps(self) -> list[dict[str, int]]:
        """New tokens per request and step: unequal prefill chunks, then single tokens of both."""
        steps = [{LONG: n} for n in LONG_CHUNKS]
        for step, n in zip(steps, SHORT_CHUNKS, strict=False):
            step[SHORT] = n
        return [*steps, *({LONG: 1, SHORT: 1} for _ in range(DECODED))]

    def hidden(self, name: str, width: int) -> Tensor:
        """Every byte through one seeded table. Shapes: -> f32 [tokens, width].

        The table lies on a coarse dyadic grid like the weights do, so that projections are exact sums: caches
        hold the same bytes on every processor, whatever its matmul does.
        """
        table = hash_normal((256, width), SEED, "embedding", 1.0, EMBEDDING_STEP)
        return table[torch.frombuffer(bytearray(self.texts[name]), dtype=torch.uint8).long()]


def tell(path: Path | None) -> Story:
    """The story of a text file, or of the text that the package carries; repeated until it is long enough."""
    source = path.read_bytes() if path else files("dsv4core.demo").joinpath("text.txt").read_bytes()
    if not source:
        raise ValueError(f"{path} is empty; any text of at least one byte will do")
    long, short = sum(LONG_CHUNKS) + DECODED, sum(SHORT_CHUNKS) + DECODED
    text = source * (-(-(long + short) // len(source)))
    return Story({LONG: text[:long], SHORT: text[long : long + short]})
