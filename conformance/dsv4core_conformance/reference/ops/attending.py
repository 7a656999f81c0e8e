"""References of the ops that score, select, attend and project."""

from __future__ import annotations

ATTENDING: dict = {}
