"""Policy optimisation in environments with a Gymnasium interface, on JAX."""
