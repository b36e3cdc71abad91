"""Learns the syntax of a model's answers from its chat template."""

from api.text.dialects.probing.learn import describe, learn

__all__ = ["describe", "learn"]
