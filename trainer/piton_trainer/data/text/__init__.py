"""Text: where it comes from, vocabularies, windows of characters, and texts mapped from a file."""
