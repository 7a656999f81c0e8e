"""Cases of the family SHAPES."""
