"""Cases of the family PAGEPERM."""
