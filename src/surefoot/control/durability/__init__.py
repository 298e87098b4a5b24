"""Runs that go on where they were stopped: where they stand, when that is kept, and how it is taken up again."""
