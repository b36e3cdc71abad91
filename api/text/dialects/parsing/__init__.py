"""Reads answers: one parser for every syntax."""

from api.text.dialects.parsing.parser import AnswerParser

__all__ = ["AnswerParser"]
