"""Settings that are found by trying, before a model is pruned with them."""
