"""Cases of the family STRIDE."""
