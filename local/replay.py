"""The archive as MEXC would push it, on 127.0.0.1.

In: rows in the order of time (see `pipeline.read.rows`), subscriptions of any number of clients. Out: a push for each
row, to all who have subscribed to it. Promises: it begins when each symbol is subscribed to, and who is subscribed by
then gets each row; while nobody is, it waits; a client that does not read slows it down, at no cost of memory, and
loses nothing. The exchange's clock, in pongs and acknowledgements, is the time that is replayed.
"""

from __future__ import annotations

import asyncio
import math
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import CancelledError
from functools import partial
from itertools import islice
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from local.session import HOST, PATH, Session, open_server, room
from pipeline.messages import DEAL, DEPTH, TICKER, format_frame
from pipeline.read.rows import Stored
from pipeline.times import iso

CHANNELS = {TICKER: "ticker", DEAL: "deal", DEPTH: "depth.full"}
QUIET = 1.0  # seconds without another subscription, after which it begins, or goes on
LATE = 1.0  # seconds that it may be behind, and catch up; what is more it stays behind
AT_ONCE = 500  # rows that are read ahead at a time
STOPS = signal.SIGINT, signal.SIGTERM
IN_A_ROW = 20  # rows at most, after which requests are answered


class Pace:
    """When rows are due: as far apart as their times are, `speed` times as fast; infinite: at once."""

    def __init__(self, speed: float, begin_ms: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is in seconds."""
        self._speed, self._begin_ms, self._clock = speed, begin_ms, clock
        self._due_ms = begin_ms
        self._begun: float | None = None

    def wait(self, due_ms: int) -> float:
        """Return the seconds until the next row, which is due at `due_ms`; the first one begins."""
        now = self._clock()
        if self._begun is None:
            self._begun = now
        self._due_ms = due_ms
        wait = self._begun + (due_ms - self._begin_ms) / 1000 / self._speed - now
        if wait < -LATE:
            self._begun -= wait
        return max(0.0, wait)

    def now_ms(self) -> int:
        """Return the time that is replayed: never beyond the next row's."""
        if self._begun is None or math.isinf(self._speed):
            return self._due_ms
        passed = (self._clock() - self._begun) * 1000 * self._speed
        return min(self._due_ms, self._begin_ms + int(passed))


class Replay:
    """The server. `run` it once."""

    def __init__(self, rows: Iterator[Stored], symbols: Collection[str], speed: float, port: int) -> None:
        """Read the first row. Raises what `rows` raises, and StopIteration where there is none."""
        self._first = next(rows)
        self._rows, self._symbols, self._port = rows, symbols, port
        self._pace = Pace(speed, self._first.due_ms)
        self._sessions: set[Session] = set()
        self._subscribed = asyncio.Event()
        self.pushed = 0
        self.unusable = 0
        """Rows that are none of MEXC's, and were left out."""

    @property
    def now(self) -> str:
        """The time that is replayed."""
        return iso(self._pace.now_ms())

    async def run(self) -> bool:
        """Serve until all is pushed and taken (True), or until SIGINT or SIGTERM (False).

        After that these signals do nothing, so that another one does not break off the end. Raises OSError if it cannot
        listen, and what the rows raise.
        """
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in STOPS:  # not the loop's own handlers, which go with it, before the last line is printed
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stopped.set))
        try:
            return await self._serve_until(stopped)
        finally:
            for number in STOPS:
                signal.signal(number, signal.SIG_IGN)

    async def _serve_until(self, stopped: asyncio.Event) -> bool:
        """Serve until all is pushed and taken, or until `stopped`; return whether it was the former."""
        server = await open_server(self._serve, self._port, _http)
        port = server.sockets[0].getsockname()[1]
        _say(f"Replay of {', '.join(self._symbols)} from {self.now} listening on ws://{HOST}:{port}{PATH}")
        play, stop = asyncio.create_task(self._play()), asyncio.create_task(stopped.wait())
        try:
            await asyncio.wait({play, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not play.done():
                return False
            play.result()
            for session in self._sessions:
                session.close()
            server.close(close_connections=False)
            taken = asyncio.create_task(server.wait_closed())  # each client reads to the end, or is given up
            await asyncio.wait({taken, stop}, return_when=asyncio.FIRST_COMPLETED)
            return taken.done()
        finally:
            play.cancel()
            server.close()
            await server.wait_closed()

    # Clients

    async def _serve(self, ws: ServerConnection) -> None:
        session = Session(ws, clock=self._pace.now_ms)
        self._sessions.add(session)
        try:
            await session.attend(self._symbols, partial(self._subscribe, session))
        finally:
            self._sessions.discard(session)

    def _subscribe(self, session: Session, symbol: str, method: str, param: dict[str, Any]) -> None:
        session.subscribe(symbol, method, param)
        self._subscribed.set()

    # Rows

    async def _play(self) -> None:
        chunks = _read_ahead(self._rows)
        await self._gather(self._symbols)
        _say(f"Begins at {self.now}")
        self._pace.wait(self._first.due_ms)
        await self._push(self._first)
        while chunk := await chunks.get():
            if isinstance(chunk, BaseException):
                raise chunk
            for n, stored in enumerate(chunk):
                if (wait := self._pace.wait(stored.due_ms)) or n % IN_A_ROW == 0:
                    await asyncio.sleep(wait)
                await self._push(stored)

    async def _push(self, stored: Stored) -> None:
        """Send a row to all who have subscribed to it, once they have room; not before anybody has subscribed."""
        if not any(session.subscriptions for session in self._sessions):
            _say(f"Nobody is subscribed: waiting at {self.now}")
            await self._gather(())
        symbol, row = stored.symbol, stored.row
        frames: dict[tuple[bool, int], str | None] = {}
        takers = []
        for session in self._sessions:
            if options := session.subscriptions.get((symbol, CHANNELS[row.mt])):
                if options not in frames:
                    compress, limit = options
                    frames[options] = format_frame(row, symbol, compress=compress, limit=limit)
                if frame := frames[options]:
                    session.send(frame.encode())
                    takers.append(session)
        self.pushed += bool(takers)
        self.unusable += None in frames.values()
        if any(session.is_full for session in takers):
            await room(takers)

    async def _gather(self, needed: Collection[str]) -> None:
        """Wait until each of the symbols, and something at all, is subscribed to, and nothing more for a moment."""
        while True:
            self._subscribed.clear()
            there = {symbol for session in self._sessions for symbol, _ in session.subscriptions}
            if there and there.issuperset(needed):
                try:
                    await asyncio.wait_for(self._subscribed.wait(), QUIET)
                except TimeoutError:
                    return
            else:
                await self._subscribed.wait()


def _read_ahead(rows: Iterator[Stored]) -> asyncio.Queue[list[Stored] | BaseException]:
    """Return a queue that a thread of its own fills: with rows, at the end an empty list, or what they have raised."""
    queue: asyncio.Queue[list[Stored] | BaseException] = asyncio.Queue(1)
    loop = asyncio.get_running_loop()

    def read() -> None:
        chunk: list[Stored] | BaseException | None = None
        while chunk is None or (isinstance(chunk, list) and chunk):
            try:
                chunk = list(islice(rows, AT_ONCE))
            except Exception as error:  # noqa: BLE001 (whoever takes it raises it)
                chunk = error
            putting = queue.put(chunk)
            try:
                asyncio.run_coroutine_threadsafe(putting, loop).result()
            except (CancelledError, RuntimeError):  # the loop ends, or is closed: nobody waits any more
                putting.close()
                return

    threading.Thread(target=read, daemon=True).start()
    return queue


def _http(ws: ServerConnection, request: Request) -> Response | None:
    """Let a WebSocket's handshake go on; answer all else."""
    if request.path.partition("?")[0] == PATH:
        return None
    return ws.respond(404, f"An archive is replayed here, at {PATH}; there is no REST.\n")


def _say(line: str) -> None:
    print(line, flush=True)
