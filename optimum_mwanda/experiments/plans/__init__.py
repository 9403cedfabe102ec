"""Searching for the sparsity of every matrix."""
