"""Cases of the family CAPS."""
