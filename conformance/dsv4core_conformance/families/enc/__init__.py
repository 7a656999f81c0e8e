"""Cases of the family ENC: scales, codes and roundings at and around every place where they step."""

from dsv4core_conformance.families.enc import codes, magnitudes, roundings  # noqa: F401
