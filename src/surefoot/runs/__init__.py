"""What a run leaves on disk: configuration, metrics, summaries. No engine is imported here."""
