"""Words that the operator and the trainer share. Standard library only, so that both images can import it."""


class InputError(ValueError):
    """What the user has given cannot be used. The message says why, and what would help; any other error is a bug."""
