"""The `minires` command."""

from __future__ import annotations

import sys


def main() -> None:
    """The entry point of the console script and of `python -m minires`."""
    from minires.cli.app import run

    sys.exit(run(sys.argv[1:]))
