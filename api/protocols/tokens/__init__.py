"""Tokens and prompts, as llama-server and vLLM show them."""
