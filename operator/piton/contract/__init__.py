"""Words that the operator and the trainer share. Standard library only, so that both images can import it."""
