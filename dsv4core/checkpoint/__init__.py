"""Safetensors checkpoints: one layer at a time out of a file or a sharded directory; synthetic ones."""

from __future__ import annotations

from dsv4core.checkpoint.reader import Checkpoint
from dsv4core.checkpoint.write import write_synthetic

__all__ = ["Checkpoint", "write_synthetic"]
