"""Cases of the family ENC."""
