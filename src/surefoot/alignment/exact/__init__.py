"""Preference tasks whose answers are all known, so that every policy's distance from the optimum is known too."""
