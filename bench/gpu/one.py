"""One part, in this process: `python -m bench.gpu.one MODULE:FUNCTION ARGUMENTS OUT [--dry]` writes its rows to OUT.

ARGUMENTS are a list in JSON; so are the rows.
"""

import argparse
import json
import logging
import tempfile
from importlib import import_module
from pathlib import Path

from bench.gpu.setting import Setting


def main() -> None:
    """Run it. What it raises is the reason why it could not."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs")
    parser.add_argument("arguments", type=json.loads)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    module, function = options.runs.split(":")
    measure = getattr(import_module(module), function)
    with tempfile.TemporaryDirectory(prefix="piton-gpu-", ignore_cleanup_errors=True) as folder:
        rows = measure(Setting(dry=options.dry, folder=Path(folder)), *options.arguments)
    options.out.write_text(json.dumps([row.to_dict() for row in rows]))


if __name__ == "__main__":
    main()
