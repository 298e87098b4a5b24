"""Models on disk and in memory: loading, adapters, saving, and what their computation costs."""
