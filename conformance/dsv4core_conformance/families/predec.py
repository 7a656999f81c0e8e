"""Cases of the family PREDEC."""
