"""Cases of the family HEADS."""
