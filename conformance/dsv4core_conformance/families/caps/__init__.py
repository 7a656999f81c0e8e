"""CAPS: what is claimed runs, what is not claimed is refused in words, and nothing else is taken instead."""

from dsv4core_conformance.families.caps import claims, discovery  # noqa: F401
