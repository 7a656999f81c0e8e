"""Reports of a run: JSON to keep, a page to read, a matrix of many."""
