"""What a client sees: HTTP, chat templates, tokens to text, the cortex command. The only package that knows trio."""
