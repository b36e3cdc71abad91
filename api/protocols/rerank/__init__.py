"""Ranking of documents."""
