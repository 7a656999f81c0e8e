"""Cases of the family WORK."""
