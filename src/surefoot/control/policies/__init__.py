"""What acts: spaces, networks, normalisers and the policy made of them. Nothing here needs JAX."""
