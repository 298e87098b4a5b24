"""Recorded data in Minari's format: written, read, and used to evaluate a policy that did not collect them."""
