"""Everything that needs llama.cpp."""
