"""Lines for whoever watches a collector; nothing waits for them to be read.

In: lines, from any thread. Out: the same on stdout, in order, by a thread of its own. Promise: `say` returns at once,
whether anybody reads, and whatever becomes of the terminal, the pipe or the disk behind it. What is not taken is
dropped and counted, and the count is said once lines are taken again. With LOG_TIME=1, each line begins with its time
unless it goes to a terminal.
"""

from __future__ import annotations

import os
import queue
import select
import sys
import threading
import time

from pipeline.times import iso

_LIMIT = 1_000  # lines that may wait: some minutes of them


class Lines:
    """The lines of one process."""

    def __init__(self, descriptor: int = 1) -> None:
        """Write to `descriptor`, stdout unless said otherwise, in the encoding of stdout."""
        self._descriptor = descriptor
        self._encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        self._lines: queue.Queue[str] = queue.Queue(_LIMIT)
        self._lock = threading.Lock()
        self._dropped = 0
        self._timed = False
        threading.Thread(target=self._print, name="lines", daemon=True).start()

    def add_times(self) -> None:
        """Begin each line with the time at which it is said, in UTC, from now on; on a terminal, go on as before."""
        self._timed = not os.isatty(self._descriptor)

    def say(self, line: str) -> None:
        """Have a line, or several in one text, printed."""
        try:
            self._lines.put_nowait(self._with_time(line))
        except queue.Full:
            self._drop()

    def flush(self, timeout: float) -> None:
        """Give what was said up to `timeout` seconds to be printed."""
        until = time.monotonic() + timeout
        while self._lines.unfinished_tasks and time.monotonic() < until:
            time.sleep(0.01)

    def _print(self) -> None:
        while True:
            line = self._lines.get()
            with self._lock:
                dropped, self._dropped = self._dropped, 0
            try:
                if dropped:
                    self._write(self._with_time(f"({dropped:,} lines were dropped here: nobody took them)"))
                    dropped = 0
                self._write(line)
            except OSError:  # a full disk, a reader that is gone
                with self._lock:
                    self._dropped += dropped + 1
            self._lines.task_done()

    def _write(self, line: str) -> None:
        left = f"{line}\n".encode(self._encoding, "replace")
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:  # somebody has made it so
                select.select([], [self._descriptor], [], 1)

    def _with_time(self, text: str) -> str:
        if not self._timed:
            return text
        now = iso(time.time_ns() // 1_000_000)
        return "\n".join(f"{now} {line}" for line in text.split("\n"))

    def _drop(self) -> None:
        with self._lock:
            self._dropped += 1
