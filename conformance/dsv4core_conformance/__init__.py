"""Conformance of dsv4core: an independent reference, and the cases that every backend must pass."""
