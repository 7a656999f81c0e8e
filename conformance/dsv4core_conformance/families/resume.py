"""Cases of the family RESUME."""
