"""Between conversations, tokens and text: templates, dialects of tool calls, vocabularies."""
