"""``python -m surefoot``."""

from surefoot.cli import entry

entry()
