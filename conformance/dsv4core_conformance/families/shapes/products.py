"""Sizes, formats and types of matrix products."""

from __future__ import annotations

from dsv4core_conformance.case import case
from dsv4core_conformance.families._calls import need_layouts
from dsv4core_conformance.inputs import make
from dsv4core_conformance.subject import Subject


@case(
    "op/linear/shapes/{format}/{inputs}x{outputs}",
    ops=("linear",),
    format=("bf16", "fp8_block", "nvfp4", "mxfp4"),
    inputs=(32, 96, 128, 416),
    outputs=(1, 24, 128, 130),
    catches=("C9",),
)
def linear_sizes(s: Subject, format: str, inputs: int, outputs: int) -> None:
    """Sizes that are no multiples of a block, in every format and type of scale."""
    for tokens, scale in ((1, "u8"), (9, "e8m0"), (33, "f32" if format == "fp8_block" else "u8")):
        s.check(
            "linear",
            make("linear", format=format, inputs=inputs, outputs=outputs, tokens=tokens, scale=scale),
        )
    s.check("linear", make("linear", format=format, inputs=inputs, outputs=outputs, out="f32"))


@case("op/linear/shapes/nvfp4/global_scale", ops=("linear",))
def global_scales(s: Subject) -> None:
    """One scale over all of an nvfp4 weight, whatever number it is."""
    for scale in (1.0, 0.0123, 3e-5, 700.0):
        for out in ("bf16", "f32"):
            s.check(
                "linear", make("linear", format="nvfp4", global_scale=scale, out=out, tokens=20, outputs=300)
            )


@case(
    "op/grouped_output_projection/shapes/{o}/{weight}",
    ops=("grouped_output_projection",),
    o=("bf16", "f32", "e4m3_f32", "e4m3_ue8m0x4"),
    weight=("bf16", "u8", "e8m0", "f32_scales"),
    catches=("C8",),
)
def projection_types(s: Subject, o: str, weight: str) -> None:
    """Every combination of inputs and weights, one token and many."""
    op = "grouped_output_projection"
    need_layouts(s, *(("f32_row",) if o == "f32" else ()))
    for tokens, heads, groups, lora in ((1, 4, 2, 16), (33, 8, 4, 40), (3, 4, 1, 130)):
        s.check(op, make(op, o=o, tokens=tokens, heads=heads, groups=groups, lora=lora, weight=weight))
