"""Cases of the family ROPE."""
