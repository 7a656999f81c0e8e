"""Cases of the family BIGOFF."""
