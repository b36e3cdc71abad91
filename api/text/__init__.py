"""Converts between conversations, text and tokens: chat templates, tool call dialects, tokenizers."""
