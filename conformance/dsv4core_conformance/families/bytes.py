"""Cases of the family BYTES."""
