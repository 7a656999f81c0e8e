"""Cases of the family MUTANT."""
