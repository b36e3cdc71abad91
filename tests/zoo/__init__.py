"""Checks that kinds of models are served right, without the API: `python -m tests.zoo --help`."""
