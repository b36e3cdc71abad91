"""Model files: their names, their folders, and downloads from a hub."""
