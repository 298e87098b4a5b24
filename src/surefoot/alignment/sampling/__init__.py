"""Answers drawn from a model: prompts computed once, keys and values kept, finished answers dropped."""
