"""Cases of the family BATCH."""
