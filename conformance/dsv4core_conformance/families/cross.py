"""Cases of the family CROSS."""
