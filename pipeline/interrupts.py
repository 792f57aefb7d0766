"""Ctrl-C: no traceback, whenever it comes.

A script calls `end_at_once` before its other imports, which take a while and have nothing to put in order, and then
`run`. SIGINT that is ignored, as in the background of a shell script, stays so.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

INTERRUPTED = 130  # the exit code that shells give to who was ended by SIGINT


def end_at_once() -> None:
    """Let SIGINT end this process as it ends those that know nothing of it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(main: Callable[[], int]) -> int:
    """Return what `main` returns; INTERRUPTED if it raises KeyboardInterrupt, as SIGINT does from now on."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = main()
        end_at_once()
    except KeyboardInterrupt:
        end_at_once()
        return INTERRUPTED
    return code
