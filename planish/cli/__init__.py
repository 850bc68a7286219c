"""The command line. Commands are thin: each calls one public verb and prints what it returns.

Exit codes: 0 done, 1 refused (bad input, unsupported model, missing tool) or failed, 2 wrong usage, 3 a check failed,
130 interrupted.
"""

from __future__ import annotations

import sys

REFUSED, CHECK_FAILED, INTERRUPTED = 1, 3, 130


def main() -> None:
    """Entry point of the `planish` command."""
    from planish.cli.app import run

    sys.exit(run(sys.argv[1:]))
