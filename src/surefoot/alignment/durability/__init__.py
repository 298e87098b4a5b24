"""What a run needs to be gone on with: its start, its state, when it is kept, and how it begins again."""
