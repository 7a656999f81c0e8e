"""Declared deviations: which cases a backend is known to fail, and the rules that keep declarations honest."""
