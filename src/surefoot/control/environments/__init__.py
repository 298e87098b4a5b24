"""Where data comes from: Gymnasium, EnvPool and pure-JAX environments behind three small interfaces."""
