"""From a file, a folder or a name to rows of prompts and answers."""
