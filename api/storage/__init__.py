"""What clients leave on disk: files, and batches of requests."""
