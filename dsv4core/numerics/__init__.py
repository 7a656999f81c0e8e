"""Canonical arithmetic, version 1 (CA1): one rule a file, plain torch, the same bits on every device."""
