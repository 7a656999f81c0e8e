"""Cases of the family DET: the same call gives the same bytes, however often it is made."""

from __future__ import annotations
