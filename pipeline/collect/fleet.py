"""A collector for each of many symbols, forked from one parent that has imported everything, whose memory they share.

In: the symbols, and signals. Out: a process a symbol, as btcdat.py is one, and another one that says what they say
(pipeline.collect.voice); an exit code. Promises: one that ends is started again, ever more slowly, and the others do
not notice; SIGINT and SIGTERM reach all of them; if this process dies, whatever of, they are killed, and their journals
hold what they have read. This process has one thread, no file of SQLite and no connection: nothing crosses a fork but
what was imported and the descriptors that a process is given, and it closes all others.
"""

from __future__ import annotations

import ctypes
import encodings.ascii
import encodings.idna  # noqa: F401 (with the one before: imported at the first connection)
import gc
import os
import pwd  # noqa: F401 (and this one, at that to ClickHouse)
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import NoReturn

from clickhouse_driver.util.compat import get_localzone_name_compat

from config import Settings, SymbolConfig
from pipeline.collect.backoff import backoff
from pipeline.collect.collector import EXIT_CONFIG, EXIT_ERRORS, EXIT_STOPPED, Membership, collect, metrics_refused
from pipeline.collect.voice import Source, speak
from pipeline.store.client import connect
from pipeline.tls import tls

_TICK = 0.1  # seconds; how soon a signal or an end is noticed
_APART = 0.02  # seconds between two starts
_STEADY = 60.0  # seconds; after so long a run, the next start comes at once again
_REFUSED = 120.0  # seconds; whoever ends with EXIT_CONFIG within them has not worked: it waits a minute for its table
_TRIES = 4  # starts in a row that were refused so; the lock of one that is just dying may be held for a moment
_TOGETHER = 3600.0  # seconds; where all have given up within them, it is for a reason that they share
_LAST_LINES = 3.0  # seconds that the voice has to end
_PR_SET_PDEATHSIG = 1


class _Member:
    """A symbol, and the process that collects it."""

    def __init__(self, config: SymbolConfig) -> None:
        self.config = config
        self.name = config["table_name"]
        self.lines_out, self.lines = os.pipe()
        self.asking, self.figures = (end.detach() for end in socket.socketpair(type=socket.SOCK_DGRAM))
        self.pid = 0
        self.due: float | None = 0.0  # when to start, on the monotonic clock; None where it runs, or all end
        self.started = 0.0
        self.gave_up = -_TOGETHER  # when it last ended with EXIT_ERRORS
        self.refusals = 0  # in a row
        self.refused_after = 0.0  # seconds
        self.delays: Iterator[float] = backoff()

    def is_refused(self, now: float) -> bool:
        """Whether it cannot run, as far as can be told; one that runs for longer than it did then may well."""
        return self.refusals >= _TRIES and not (self.pid and now - self.started > 2 * self.refused_after)


class Fleet:
    """The collectors of `configs`, as children of this process; `run` once."""

    def __init__(self, configs: Sequence[SymbolConfig], settings: Settings) -> None:
        self._settings = settings
        self._members = [_Member(config) for config in configs]
        self._own_out, self._own = os.pipe()
        os.set_blocking(self._own, False)
        self._listener: int | None = None
        self._voice = 0
        self._signals = 0
        self._has_worked = False  # what works no more now may do so later: until then it may be how it is configured
        self._exit_code: int | None = None  # when it is time to end

    def run(self) -> int:
        """Keep them running until SIGINT or SIGTERM; return the exit code, which is as that of one collector."""
        if self._settings.metrics_port:
            import pipeline.collect.metrics  # noqa: F401 (so that they share it)

            try:
                self._listener = _listen(self._settings)
            except OSError as error:
                print(metrics_refused(self._settings, error), file=sys.stderr)
                return EXIT_CONFIG
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note_signal)
        _prepare(self._settings)
        gc.freeze()  # or each collection would make a process's own copy of what they share
        self._start_voice()
        passed_on = 0
        while True:
            if self._signals and self._exit_code is None:
                self._exit_code = EXIT_STOPPED
            if self._signals > passed_on:
                passed_on = self._signals
                self._stop()
            self._reap()
            if self._exit_code is None:
                self._start_those_due()
            elif not any(member.pid for member in self._members):
                break
            time.sleep(_TICK)
        self._end_voice()
        return self._exit_code

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1

    def _say(self, line: str) -> None:
        with suppress(BlockingIOError):  # nothing waits for what is said
            os.write(self._own, f"{line}\n".encode())

    def _end(self, exit_code: int, line: str) -> None:
        """End the others, too, and say why."""
        self._say(line)
        self._exit_code = exit_code
        self._stop()

    def _stop(self) -> None:
        for member in self._members:
            member.due = None
            if member.pid:
                os.kill(member.pid, signal.SIGTERM)

    def _start_those_due(self) -> None:
        for member in self._members:
            if member.due is not None and time.monotonic() >= member.due and not self._signals:
                member.due, member.started = None, time.monotonic()
                run = partial(collect, member.config, Membership(self._settings, member.figures))
                member.pid = _fork(run, output=member.lines, keep=[member.figures], dies_with_this=True)
                time.sleep(_APART)

    def _reap(self) -> None:
        """Take note of those that have ended."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                exit_code = os.waitstatus_to_exitcode(status)
                for member in self._members:
                    if member.pid == pid:
                        member.pid = 0
                        self._ended(member, exit_code)
                if pid == self._voice:
                    self._start_voice()
                    self._say(f"What prints these lines ended with exit code {exit_code}: it was started again")

    def _ended(self, member: _Member, exit_code: int) -> None:
        """Decide what becomes of a symbol whose collector has ended."""
        now = time.monotonic()
        if self._exit_code is not None:
            if exit_code != EXIT_STOPPED:
                self._say(f"{member.name} ended with exit code {exit_code}")
            return
        ran = now - member.started
        if ran > _STEADY:
            member.delays = backoff()
        if exit_code == EXIT_CONFIG and ran < _REFUSED:
            member.refusals, member.refused_after = member.refusals + 1, ran
        else:
            member.refusals = 0
            self._has_worked = True
        working = [each for each in self._members if not each.is_refused(now)]
        if not working and not self._has_worked:
            self._end(EXIT_CONFIG, f"{member.name} ended with exit code {exit_code}, as all did: ending")
            return
        if exit_code == EXIT_ERRORS:
            member.gave_up = now
            if all(now - each.gave_up < _TOGETHER for each in working):
                self._end(EXIT_ERRORS, f"{member.name} ended with exit code {exit_code}, as all did: ending")
                return
        delay = next(member.delays)
        member.due = now + delay
        again = f"starting it again{f' in {delay:.1f} s' if delay else ''}"
        self._say(f"{member.name} ended with exit code {exit_code}: {again}")

    # The voice

    def _start_voice(self) -> None:
        sources = [Source(each.config, each.lines_out, each.asking) for each in self._members]
        keep = [self._own_out, *(end for source in sources for end in (source.lines, source.figures))]
        if self._listener is not None:
            keep.append(self._listener)

        def run() -> int:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # others have things to say before they end
            speak(sources, self._own_out, self._settings, self._listener)
            return 0

        self._voice = _fork(run, output=None, keep=keep, dies_with_this=False)

    def _end_voice(self) -> None:
        """Let it say what is left: it ends when nobody has the other ends of its pipes any more."""
        for descriptor in (self._own, *(member.lines for member in self._members)):
            os.close(descriptor)
        until = time.monotonic() + _LAST_LINES
        while os.waitpid(self._voice, os.WNOHANG)[0] == 0:
            if time.monotonic() > until:
                os.kill(self._voice, signal.SIGKILL)
                os.waitpid(self._voice, 0)
                return
            time.sleep(_TICK / 10)


def _prepare(settings: Settings) -> None:
    """Import and read what each collector would for itself, at its first connections."""
    get_localzone_name_compat()
    connect(settings)
    tls()


def _listen(settings: Settings) -> int:
    """Return the descriptor of a socket that listens at METRICS_PORT. Raises OSError."""
    listener = socket.create_server((settings.metrics_host, settings.metrics_port))
    return listener.detach()


def _fork(run: Callable[[], int], *, output: int | None, keep: Sequence[int], dies_with_this: bool) -> int:
    """Return the id of a new process that does `run` and ends with the exit code that it returns.

    It has a session of its own, so that Ctrl-C reaches this process only. It prints to `output`, or where this one
    does. Of the other descriptors, it has those to `keep`. These are numbers here and no objects: the copy of an object
    would close its number once more, when that is another's already.
    """
    stops = {signal.SIGINT, signal.SIGTERM}
    parent = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)  # one that comes at once is to find it ready
    try:
        pid = os.fork()
        if pid == 0:
            _be_the_child(run, output, keep, parent if dies_with_this else None)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)
    return pid


def _be_the_child(run: Callable[[], int], output: int | None, keep: Sequence[int], parent: int | None) -> NoReturn:
    exit_code = EXIT_ERRORS
    try:
        os.setsid()
        if parent is not None:
            _die_with(parent)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        if output is not None:
            os.dup2(output, 1)
            os.dup2(output, 2)
        kept = [2, *sorted(keep)]
        for before, after in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
            os.closerange(before + 1, after)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
        exit_code = run()
    except Exception:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process as soon as its parent ends, whatever of."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(EXIT_ERRORS)
