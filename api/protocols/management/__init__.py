"""Listing, starting and stopping models, and the state and version of the server."""
