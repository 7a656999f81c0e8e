"""Pictures of the figures that `cuda_attention.py` and `cuda_layer.py` printed.

Type `python benchmarks/device_plots.py` beside their CSV files in `benchmarks/results` (matplotlib).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from dsv4core.bench.measure import Row
from dsv4core.bench.plot import png

RESULTS = Path(__file__).parent / "results"
LAYERS = ("one stream", "side streams", "triton's attention")


def lines(name: str) -> tuple[str, list[dict[str, str]]]:
    """What the first line says of the machine, and the rows."""
    text = (RESULTS / name).read_text(encoding="utf-8").splitlines()
    comments = [line for line in text if line.startswith("#")]
    return comments[0].lstrip("# "), list(csv.DictReader(line for line in text if not line.startswith("#")))


def row(curve: str, x: str, at: int, side: str, us: float, roof: float | None = None) -> Row:
    """A point of a curve."""
    return Row(
        f"{curve}, {at}", curve, side, "", True, "", us, us, us, roof_us=roof, facts={x: at}, curve=curve, x=x
    )


def attention(found: list[dict[str, str]]) -> Iterator[Row]:
    """Decode over tokens: the adapter, the fastest raw build, the op alone, Triton."""
    decode = [line for line in found if line["kind"] == "decode"]
    for shape in dict.fromkeys((line["heads"], line["keys"], line["tokens"]) for line in decode):
        mine = {
            li["way"]: float(li["us"]) for li in decode if (li["heads"], li["keys"], li["tokens"]) == shape
        }
        heads, keys, tokens = shape
        curve = f"decode, {heads} heads, {keys} keys"
        raw = [us for way, us in mine.items() if way.endswith(" raw")]
        if raw:
            yield row(curve, "tokens", int(tokens), "fastest FlashMLA, raw", min(raw))
        for way, name in (("adapter", "adapter"), ("op", "op alone"), ("triton", "Triton")):
            if way in mine:
                yield row(curve, "tokens", int(tokens), name, mine[way])


def layers(found: list[dict[str, str]]) -> Iterator[Row]:
    """A layer among several over requests, and its floor."""
    for kind, batch, context in dict.fromkeys((li["kind"], li["batch"], li["context"]) for li in found):
        mine = {
            li["what"]: float(li["value"])
            for li in found
            if (li["kind"], li["batch"], li["context"]) == (kind, batch, context)
        }
        for way in LAYERS:
            us = mine.get(f"{way} as one of several")
            if us is not None:
                yield row(f"{kind}, {context}", "requests", int(batch), way, us, mine["floor"])


def main() -> None:
    """Write them."""
    for name, rows in (("h100-attention", attention), ("h100-layer", layers)):
        title, found = lines(f"{name}.csv")
        (RESULTS / f"{name}.png").write_bytes(png(list(rows(found)), title))


if __name__ == "__main__":
    main()
