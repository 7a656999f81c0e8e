"""Cases of the family POISON."""
