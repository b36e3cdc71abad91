"""Models on disk: from a name to files that can be loaded."""
