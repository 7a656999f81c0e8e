"""Modules of the stand-in; see the package."""
