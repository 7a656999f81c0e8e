"""Cases of the family GRAPH."""
