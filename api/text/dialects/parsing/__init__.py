"""Reads answers: one parser for every syntax."""

from api.text.dialects.parsing.parser import AnswerParser, call_id

__all__ = ["AnswerParser", "call_id"]
