"""Gymnasium environments in processes of their own, and what is left of one that fails there. Nothing here imports JAX."""
