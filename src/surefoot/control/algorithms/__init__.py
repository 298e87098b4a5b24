"""One algorithm, one file: its weight ψ, its objective and its step."""
