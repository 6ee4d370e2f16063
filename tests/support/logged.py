"""Lines of the log of this process: in a rank that is forked, pytest sees none of them."""

import logging


def warnings_from_now_on() -> list[str]:
    """Return a list that gets the text of each warning that is logged from now on."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    return lines
