"""Ctrl-C, and a package that is not there: no traceback, whenever it comes.

A script calls `end_at_once` before its other imports, which take a while and have nothing to put in order, and then
`run`. SIGINT that is ignored, as in the background of a shell script, stays so.
Python without the packages that the project needs is said in one line, with exit code 2.
"""

from __future__ import annotations

import signal
import sys

TYPE_CHECKING = False  # `typing` and the like take time, in which SIGINT is still a traceback
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

INTERRUPTED = 130  # the exit code that shells give to who was ended by SIGINT


def end_at_once() -> None:
    """Let SIGINT end this process as it ends those that know nothing of it, and a missing package with a line."""
    sys.excepthook = _say_what_is_missing
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


def _say_what_is_missing(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    from pathlib import Path

    project = Path(__file__).resolve().parents[1]  # config.py, which says it to others, needs a package
    venv = project / "venv"
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if not name or (project / name).exists():
        sys.__excepthook__(kind, error, trace)
        return
    is_made = (venv / "bin" / "activate").exists() and Path(sys.prefix) != venv
    advice = "source venv/bin/activate" if is_made else "run ./setup.sh, then source venv/bin/activate"
    print(f"Python has no package {name} here: {advice}", file=sys.stderr)
    sys.exit(2)
