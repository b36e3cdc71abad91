"""Micro-benchmarks of the step's Python, with a runner that computes nothing: `make micro`."""
