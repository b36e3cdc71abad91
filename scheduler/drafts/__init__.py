"""Drafts: guessed next tokens, which a step verifies together with the known ones. They change no answer."""
