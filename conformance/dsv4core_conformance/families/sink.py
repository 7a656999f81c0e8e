"""Cases of the family SINK."""
