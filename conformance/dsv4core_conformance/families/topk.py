"""Cases of the family TOPK."""
