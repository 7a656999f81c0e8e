"""Cases of the family XFER."""
