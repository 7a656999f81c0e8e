"""Projections: weight formats as data, kernels as ranked candidates, one choice with its reasons."""

from __future__ import annotations

from dsv4core.linear.formats import FORMATS, WeightFormat
from dsv4core.linear.kernel import Choice, LinearKernel, Problem, Verdict, choose
from dsv4core.linear.projection import Linear, Linears, Projection, SplitLinear
from dsv4core.linear.weight import QuantisedWeight, Weight, dense, describe

__all__ = [
    "FORMATS",
    "Choice",
    "Linear",
    "LinearKernel",
    "Linears",
    "Problem",
    "Projection",
    "QuantisedWeight",
    "SplitLinear",
    "Verdict",
    "Weight",
    "WeightFormat",
    "choose",
    "dense",
    "describe",
]
