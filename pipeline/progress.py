"""How far something is, for whoever waits for it at a terminal."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

_PATIENCE = 1.0  # seconds that nobody minds; what is done by then shows nothing


@contextmanager
def progress(label: str, total: float | None = None) -> Iterator[Callable[[float], None]]:
    """Show a bar on stderr while the block runs, if that takes more than a moment and stderr is a terminal.

    `label` says what is done and `total` how much there is of it, in whatever unit; where that is None, the bar says
    only that something goes on. Yields a function that is to be told what was done since its last call.
    """
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    done = 0.0
    advance_bar: Callable[[float], None] | None = None
    lock = threading.Lock()

    def advance(count: float) -> None:
        nonlocal done
        with lock:
            done += count
            if advance_bar:
                advance_bar(count)

    def show() -> None:
        nonlocal advance_bar
        try:
            from rich.console import Console  # takes a tenth of a second
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
        except ModuleNotFoundError:  # the image of the collectors does without
            return

        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
        bar = Progress(*columns, console=Console(stderr=True), transient=True)
        with lock:
            if ended:
                return
            task = bar.add_task(label, total=total)
            bar.advance(task, done)
            shown.enter_context(bar)
            advance_bar = lambda count: bar.advance(task, count)  # noqa: E731

    ended = False
    timer = threading.Timer(_PATIENCE, show)
    timer.daemon = True
    with ExitStack() as shown:
        timer.start()
        try:
            yield advance
        finally:
            timer.cancel()
            with lock:
                ended = True
