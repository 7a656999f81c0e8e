"""Cases of the family SPEC."""
