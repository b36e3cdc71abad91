"""Micro-benchmarks of the Python code of a step, with a runner that computes nothing: `make micro`."""
