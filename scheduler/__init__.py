"""The engine process: plans steps, runs them on llama.cpp, and commits their results. Plain synchronous Python."""
