"""The likelihood of completions: a prompt shared by its answers, the vocabulary projection only where it is read."""
