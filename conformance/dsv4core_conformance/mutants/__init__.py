"""Deliberately faulty backends: each must be caught by a named case, and by little else."""
