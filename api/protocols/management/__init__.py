"""Models that are listed, started and stopped by request."""
