"""Cases of the family CHUNK."""
