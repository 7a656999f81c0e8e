"""Cases of the family EMPTY."""
