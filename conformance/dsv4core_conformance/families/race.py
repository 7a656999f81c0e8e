"""Cases of the family RACE."""
