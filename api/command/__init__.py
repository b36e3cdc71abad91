"""The cortex command: what each of its verbs does, and what a person sees of it."""
