"""Tokenization and prompts, as in llama-server and vLLM."""
