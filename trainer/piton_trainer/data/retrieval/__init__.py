"""Document collections and training examples for retrieval."""
