"""Cases of the family SHAPES: every size runs and is right, or is refused before anything is written."""

from dsv4core_conformance.families.shapes import (  # noqa: F401
    attention,
    lists,
    many,
    products,
    ranges,
    refusals,
    together,
    turned,
)
