"""A simulated MEXC futures exchange on 127.0.0.1, for demonstrations, tests and benchmarks.

In: subscriptions and pings of any number of WebSocket clients at ``/edge``. Out: the frames that MEXC would push, from
one simulated market per symbol (see `local.market`) or from a file. REST (see `local.rest`) has an address of its own,
and is answered at the WebSocket's, too, as MEXC still does; ``/status`` and ``/control`` are there. It misbehaves when
told to, never by itself.

Promises: no frame of a channel before its subscription; a market goes on while nobody listens, and REST has its last
deals; a client that does not read is disconnected before it costs more than MAX_BACKLOG of memory; every market frame
that a client gets is in the log (the last ones of a connection that broke may be in the log only).
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import math
import re
import signal
import socket
import ssl
import struct
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import parse_qsl

from websockets.asyncio.server import Server, ServerConnection
from websockets.http11 import Request, Response
from websockets.protocol import State

from local import rest
from local.market import CONTRACTS, Event, Market, frames
from local.session import HOST, METHODS, PATH, PING_LIMIT, Session, now_ms, open_server, room

CHANNELS = {"ticker": "ticker", "deal": "deal", "depth": "depth.full"}  # by what faults call them
MAX_BACKLOG = 8 << 20  # bytes not yet taken by a client
LOGIN = "/login"
LOGIN_PAGE = "<!DOCTYPE html><title>MEXC</title><p>Log in to go on.</p>\n"
REPLAY_QUIET = 0.2  # seconds without another subscription, after which a replay begins


@dataclass(eq=False)
class Client(Session):
    """One connection, and what faults have made of it."""

    number: int
    dead: set[tuple[str, str]] = field(default_factory=set)  # subscriptions of which nothing is pushed
    subscribed: asyncio.Event = field(default_factory=asyncio.Event)
    sent: Counter[str] = field(default_factory=Counter)
    silent: bool = False
    twice: int = 0  # so many of the next frames go out twice

    def copies(self) -> int:
        """Return how often the next frame is to be written: 0 if it cannot be, 2 if it is duplicated."""
        if self.silent or not self.is_open:
            return 0
        if self.backlog() > MAX_BACKLOG:
            self.ws.transport.abort()
            return 0
        if self.twice:
            self.twice -= 1
            return 2
        return 1

    def write(self, data: bytes, text: bool = True) -> None:
        """Hand a frame to the socket."""
        super().send(data, text)

    def send(self, data: bytes, text: bool = True) -> None:
        """Send a frame that is no market data and so not in the log."""
        for _ in range(self.copies()):
            self.write(data, text)

    def give_up(self, ping_limit: float) -> bool:
        """Disconnect the client, unless it is to hear nothing."""
        return not self.silent and super().give_up(ping_limit)

    @property
    def is_full(self) -> bool:
        """Whether the client is to read before it is sent more; one that does not is not waited for."""
        return not self.silent and super().is_full

    def heal(self) -> None:
        """End a stall or a half-open state, and what has become of its subscriptions."""
        self.twice = 0
        self.dead.clear()
        if self.silent:
            self.silent = False
            self.ws.transport.resume_reading()


# Faults that strike every open connection once, each time they are asked for. Their docstrings are what --help says.


def drop(client: Client) -> None:
    """reset the TCP connection"""
    linger = struct.pack("ii", 1, 0)  # nothing is sent any more, and the client sees a reset instead of an end
    client.ws.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    client.ws.transport.abort()


def close(client: Client) -> None:
    """send a close frame"""
    client.close()


def stall(client: Client) -> None:
    """keep the connection open, and send nothing any more, not even a pong"""
    client.silent = True


def half_open(client: Client) -> None:
    """neither read nor write any more, as if every packet vanished"""
    client.silent = True
    client.ws.transport.pause_reading()


def duplicate(client: Client) -> None:
    """send the next frame twice, whether push, acknowledgement or pong"""
    client.twice += 1


def error(client: Client) -> None:
    """send an rs.error frame"""
    client.answer("rs.error", "System busy")


def wrong_symbol(client: Client) -> None:
    """push a ticker of a symbol that was not subscribed to"""
    known = {symbol for symbol, _ in client.subscriptions}
    other = next((symbol for symbol in CONTRACTS if symbol not in known), "NOPE_USDT")
    _, frame = next(frames("BTC_USDT", 0, now_ms()))
    client.send(frame.replace("BTC_USDT", other).encode())


def unknown_channel(client: Client) -> None:
    """push on a channel that does not exist"""
    client.answer("push.mystery", "?")


def bad_field(client: Client) -> None:
    """push a deal whose price is no number"""
    for symbol in {symbol for symbol, _ in client.subscriptions}:
        deal = f'{{"symbol":"{symbol}","data":{{"p":"-","v":null,"T":7}},"channel":"push.deal","ts":{now_ms()}}}'
        client.send(deal.encode())


def broken_json(client: Client) -> None:
    """send a text frame that breaks off in the middle"""
    client.send(b'{"symbol":"BTC_USDT","data":{"lastPrice":84')


def nested(client: Client) -> None:
    """send JSON that is nested too deep to parse"""
    client.send(b"[" * 100_000 + b"]" * 100_000)


def huge(client: Client) -> None:
    """send a frame of 4 MB"""
    client.answer("push.mystery", "x" * (4 << 20))


def binary(client: Client) -> None:
    """send a binary frame"""
    client.send(b"\x1f\x8b\x08\x00\xff\xfe", text=False)


def bad_utf8(client: Client) -> None:
    """send a text frame that is not UTF-8"""
    client.send(b'{"symbol":"\xff\xfe"}')


def garbage(client: Client) -> None:
    """all of unknown-channel, bad-field, broken-json, nested, huge, binary, bad-utf8"""
    for strike in (unknown_channel, bad_field, broken_json, nested, huge, binary, bad_utf8):
        strike(client)


STRIKES: dict[str, Callable[[Client], None]] = {
    strike.__name__.replace("_", "-"): strike
    for strike in (
        drop,
        close,
        stall,
        half_open,
        duplicate,
        error,
        wrong_symbol,
        unknown_channel,
        bad_field,
        broken_json,
        nested,
        huge,
        binary,
        bad_utf8,
        garbage,
    )
}


def _dies(channel: str) -> Callable[[Client], None]:
    def strike(client: Client) -> None:
        client.dead.update(subscription for subscription in client.subscriptions if subscription[1] == channel)

    strike.__doc__ = f"push no {channel} any more, until the connection subscribes to it anew"
    return strike


STRIKES |= {f"{name}-dies": _dies(channel) for name, channel in CHANNELS.items()}


# Faults that change each frame of the market. Their docstrings are what --help says.


def ts_seconds(frame: str) -> str:
    """each ts is in seconds"""
    return re.sub(r'"ts":(\d+)\d{3}', r'"ts":\1', frame)


def ts_microseconds(frame: str) -> str:
    """each ts is in microseconds"""
    return re.sub(r'"ts":(\d+)', r'"ts":\g<1>000', frame)


def ts_string(frame: str) -> str:
    """each ts is a string"""
    return re.sub(r'"ts":(\d+)', r'"ts":"\1"', frame)


def ts_missing(frame: str) -> str:
    """no frame has a ts"""
    return re.sub(r',"ts":\d+', "", frame)


def bare_ids(frame: str) -> str:
    """deals have their i and cts as numbers, as in MEXC's own page"""
    return re.sub(r'"(i|cts)":"(\d+)"', r'"\1":\2', frame)


def quoted_numbers(frame: str) -> str:
    """each number is a string"""
    return re.sub(r"(?<=[\[:,])-?\d[\d.E+-]*", r'"\g<0>"', frame)


CHANGES: dict[str, Callable[[str], str]] = {
    change.__name__.replace("_", "-"): change
    for change in (ts_seconds, ts_microseconds, ts_string, ts_missing, bare_ids, quoted_numbers)
}

REST_FAULTS = {
    "down": "with HTTP 503",
    "forbid": "with HTTP 403",
    "login": "with a redirect to a login page",
    "half": "with the first half of the answer, and cut the connection",
    "html": "with a page that is no JSON",
    "error": "that there were too many requests: HTTP 200, but success is false",
}

# Faults that hold until they are healed.
LASTING = {
    "refuse": "accept TCP connections and close them at once",
    "forbid": "answer WebSocket handshakes with HTTP 403",
    "hang-up": "close each new connection right after its handshake",
    "gone": "close everything and do not listen; needs SECONDS",
    **{
        f"{name}-{what}": text.format(channel)
        for name, channel in CHANNELS.items()
        for what, text in {
            "refused": "answer sub.{} with an error text",
            "refused-object": "answer sub.{} with an error object",
            "ignored": "do not answer sub.{}",
            "mute": "confirm sub.{}, and push nothing",
        }.items()
    },
    "unchanged-books": "the top 20 of each book stay as they are, and its version rises",
    **{name: change.__doc__ or "" for name, change in CHANGES.items()},
    "gzip": "send market frames gzipped, as binary frames",
    **{f"rest-{name}": f"answer REST {text}" for name, text in REST_FAULTS.items()},
    **{f"api-{name}": f"the same, but at REST's own address only: {text}" for name, text in REST_FAULTS.items()},
    "rest-moved": "the WebSocket's address answers REST with HTTP 404",
}


@dataclass(frozen=True)
class Fault:
    """A fault to apply, see `parse`."""

    name: str
    seconds: float | None = None
    count: int | None = None

    @classmethod
    def parse(cls, text: str, count: str | None = None) -> Fault:
        """Read NAME or NAME:SECONDS, and a count.

        With seconds, a strike is repeated every so many seconds, and a lasting fault heals after them. With a count,
        a strike is done so many times, and a lasting fault hits so many connections, requests or frames. Raises
        ValueError.
        """
        name, colon, digits = text.partition(":")
        if name not in STRIKES and name not in LASTING:
            raise ValueError(f"no fault is called {name!r}: see --help")
        seconds = None
        if colon or name == "gone":
            try:
                seconds = float(digits)
            except ValueError:
                seconds = 0.0
            if not 0.001 <= seconds <= 1e6:
                raise ValueError(f"fault {text} cannot be used: give {name}:SECONDS, such as {name}:5")
        if count is not None and not (count.isdecimal() and int(count)):
            raise ValueError(f"count={count} is not a whole number above 0")
        return cls(name, seconds, int(count) if count else None)


@dataclass(frozen=True)
class Options:
    """What the command line sets; see `--help`."""

    port: int = 8765
    rest_port: int = 8766
    rate: float | None = None
    frames: float = math.inf
    seed: int = 0
    replay: Path | None = None
    log: Path | None = None
    tls: Path | None = None
    ping_limit: float = PING_LIMIT
    fault: tuple[Fault, ...] = ()


class Exchange:
    """The server. `run` it once."""

    def __init__(self, options: Options) -> None:
        """Raises OSError if the log, the file to replay or that of TLS cannot be used."""
        self._options = options
        self._log_file = options.log.open("a", buffering=1, encoding="utf-8") if options.log else None
        if options.replay:
            options.replay.open("rb").close()
        self._tls: ssl.SSLContext | None = None
        if options.tls:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(options.tls)
        self._ports = [options.port, options.rest_port]
        self._clients: set[Client] = set()
        self._takers: defaultdict[str, set[Client]] = defaultdict(set)  # who has subscribed to something of a symbol
        self._accepted = 0
        self._markets: dict[str, Market] = {}
        self._sent: Counter[str] = Counter()
        self._logged: Counter[int] = Counter()  # per connection
        self._struck: Counter[str] = Counter()
        self._lasting: dict[str, float] = {}  # how many more connections or requests it will hit
        self._tasks: set[asyncio.Task[None]] = set()
        self._fault_tasks: set[asyncio.Task[None]] = set()
        self._going = asyncio.Lock()
        self._pace = rest.Pace()

    async def run(self) -> None:
        """Serve until SIGINT or SIGTERM. Raises OSError if it cannot listen, or cannot write the log."""
        loop = asyncio.get_running_loop()
        self._stopped: asyncio.Future[None] = loop.create_future()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, None)
        self._servers = await self._listen()
        port, rest_port = self._ports
        print(f"Simulated MEXC exchange: REST on http://{HOST}:{rest_port}")
        scheme = "wss" if self._tls else "ws"
        print(f"Simulated MEXC exchange listening on {scheme}://{HOST}:{port}{PATH}", flush=True)
        for fault in self._options.fault:
            self._apply(fault)
        try:
            await self._stopped
        finally:
            for task in self._tasks:
                task.cancel()
            await self._close()

    async def _listen(self) -> list[Server]:
        """Return the servers of the WebSocket and of REST, and keep their ports for the next time. Raises OSError."""
        servers = []
        for place, (process_request, tls) in enumerate(((self._http, self._tls), (self._http_of_rest, None))):
            server = await open_server(self._serve, self._ports[place], process_request, tls)
            self._ports[place] = server.sockets[0].getsockname()[1]
            servers.append(server)
        return servers

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for server in self._servers:
            await server.wait_closed()

    def _stop(self, failure: BaseException | None) -> None:
        if not self._stopped.done():
            if failure:
                self._stopped.set_exception(failure)
            else:
                self._stopped.set_result(None)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` in the background; if it fails, so does the exchange."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._fault_tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()):
            self._stop(failure)

    # The WebSocket

    async def _serve(self, ws: ServerConnection) -> None:
        self._accepted += 1
        if self._hits("hang-up"):
            ws.transport.abort()
            return
        client = Client(ws, self._accepted)
        self._clients.add(client)
        try:
            await client.attend(CONTRACTS, partial(self._subscribe, client), self._options.ping_limit)
        finally:
            self._clients.discard(client)
            for symbol, _ in client.subscriptions:
                self._takers[symbol].discard(client)

    def _subscribe(self, client: Client, symbol: str, method: str, param: dict[str, Any]) -> None:
        name = METHODS[method].partition(".")[0]
        if self._hits(f"{name}-ignored"):
            return
        if self._hits(f"{name}-refused"):
            client.answer(f"rs.{method}", f"Contract [{symbol}] not exists")
            return
        if self._hits(f"{name}-refused-object"):
            client.answer(f"rs.{method}", {"code": 1001, "message": f"Contract [{symbol}] not exists"})
            return
        first = not client.subscriptions
        self._takers[symbol].add(client)
        client.dead.discard((symbol, METHODS[method]))
        if self._hits(f"{name}-mute"):
            client.dead.add((symbol, METHODS[method]))
        client.subscribe(symbol, method, param)
        client.subscribed.set()
        if self._options.replay:
            if first:
                self._spawn(self._replay(client, self._options.replay))
        elif symbol not in self._markets:
            self._markets[symbol] = Market(symbol, self._options.seed)
            self._spawn(self._trade(self._markets[symbol]))

    # What is pushed

    async def _trade(self, market: Market) -> None:
        """Let a market go on for ever: at the pace that --rate sets while somebody listens, else at its own."""
        loop = asyncio.get_running_loop()
        rate = self._options.rate
        due = loop.time()
        while True:
            event = market.step(now_ms(), still="unchanged-books" in self._lasting)
            takers = self._push(market.symbol, event)
            pause = event.pause
            if takers and rate is not None:
                pause = event.size / rate if rate else 0.0
                if not rate:
                    await room(takers)
            due = max(due + pause, loop.time() - 1)  # after a hang-up of the machine there is no long rush
            await asyncio.sleep(due - loop.time())

    def _push(self, symbol: str, event: Event) -> list[Client]:
        """Send an event to all who subscribed to it; return the clients who still take frames of the symbol."""
        takers = [
            client
            for client in self._takers[symbol]
            if not client.silent and client.sent[symbol] < self._options.frames
        ]
        missed = event.channel == "deal"
        if event.channel == "depth.full":
            self._hits("unchanged-books")
        for client in takers:
            subscription = symbol, event.channel
            options = None if subscription in client.dead else client.subscriptions.get(subscription)
            for frame in event.frames(*options) if options else ():
                if client.sent[symbol] < self._options.frames and self._deliver(client, symbol, self._changed(frame)):
                    missed = False
        if missed:
            for frame in event.frames():
                self._log(0, symbol, frame.encode())
        return takers

    def _changed(self, frame: str) -> bytes:
        for name, change in CHANGES.items():
            if self._hits(name):
                frame = change(frame)
        return frame.encode()

    def _deliver(self, client: Client, symbol: str, frame: bytes) -> int:
        """Send and log a market frame; return how often."""
        copies = client.copies()
        zipped = copies and self._hits("gzip")
        for _ in range(copies):
            client.sent[symbol] += 1
            self._sent[symbol] += 1
            self._log(client.number, symbol, frame)  # first: what a client has got must be there
            client.write(gzip.compress(frame) if zipped else frame, text=not zipped)
        return copies

    def _log(self, number: int, symbol: str, frame: bytes) -> None:
        """Note a market frame that connection `number` was sent, or a deal that nobody was (number 0).

        One line of JSON each: ``{"conn": 1, "seq": 1, "symbol": "BTC_USDT", "frame": "..."}``; `seq` counts per
        connection, and bytes that are not UTF-8 are escaped as Python's surrogateescape does. REST's form of a deal is
        in its frame: the same p, v, T, O, M and t.
        """
        if self._log_file:
            self._logged[number] += 1
            text = frame.decode(errors="surrogateescape")
            entry = {"conn": number, "seq": self._logged[number], "symbol": symbol, "frame": text}
            self._log_file.write(json.dumps(entry) + "\n")

    async def _replay(self, client: Client, path: Path) -> None:
        """Send a file's lines, once the client has subscribed to all it wants."""
        with suppress(TimeoutError):
            while len(client.subscriptions) < len(METHODS):
                client.subscribed.clear()
                await asyncio.wait_for(client.subscribed.wait(), REPLAY_QUIET)
        loop = asyncio.get_running_loop()
        due = loop.time()
        with path.open("rb") as file:
            for line in file:
                if client.ws.state is not State.OPEN:
                    return
                if line.strip():
                    self._deliver(client, _symbol_of(line), line.removesuffix(b"\n"))
                    await room([client])
                    if self._options.rate:
                        due += 1 / self._options.rate
                        await asyncio.sleep(due - loop.time())

    # Faults

    def _apply(self, fault: Fault) -> None:
        if fault.name == "gone":
            self._spawn(self._go_away(fault.seconds or 0))
        elif fault.name in LASTING:
            self._lasting[fault.name] = fault.count or math.inf
            if fault.seconds:
                self._fault_tasks.add(self._spawn(self._heal_later(fault.name, fault.seconds)))
        elif fault.seconds:
            self._fault_tasks.add(self._spawn(self._repeat(replace(fault, seconds=None), fault.seconds)))
        else:
            for client in list(self._clients):
                for _ in range(fault.count or 1):
                    STRIKES[fault.name](client)
                    self._struck[fault.name] += 1

    def _heal(self) -> None:
        for task in self._fault_tasks:
            task.cancel()
        self._lasting.clear()
        for client in self._clients:
            client.heal()

    async def _repeat(self, fault: Fault, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            self._apply(fault)

    async def _heal_later(self, name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._lasting.pop(name, None)

    async def _go_away(self, seconds: float) -> None:
        async with self._going:  # asked for twice, it goes twice
            self._struck["gone"] += 1
            for server in self._servers:
                for listener in server.sockets:  # asyncio forgets, but keeps open, what it accepts while it closes
                    asyncio.get_running_loop().remove_reader(listener)
            await self._close()
            await asyncio.sleep(seconds)
            self._servers = await self._listen()

    def _hits(self, name: str) -> bool:
        """Return whether a lasting fault holds, and count that it did."""
        left = self._lasting.get(name, 0)
        if left:
            self._lasting[name] = left - 1
            self._struck[name] += 1
        return bool(left)

    # Plain HTTP

    def _http(self, ws: ServerConnection, request: Request) -> Response | None:
        """Answer a request, or return None to go on with a WebSocket handshake."""
        path, _, query = request.path.partition("?")
        if path == PATH:
            if self._hits("refuse"):
                ws.transport.abort()
                return None
            return ws.respond(403, "Forbidden\n") if self._hits("forbid") else None
        if path == "/status":
            return _json(ws, self._status())
        if path == "/control":
            return self._control(ws, dict(parse_qsl(query)))
        return self._rest(ws, request, "rest") or ws.respond(
            404, f"The WebSocket is at {PATH}; see also /status and /control.\n"
        )

    def _http_of_rest(self, ws: ServerConnection, request: Request) -> Response:
        """Answer a request at REST's own address, where no WebSocket is."""
        return self._rest(ws, request, "rest", "api") or ws.respond(404, "REST is at /api/v1/contract/\n")

    def _rest(self, ws: ServerConnection, request: Request, *addresses: str) -> Response | None:
        """Answer a request for REST, as the faults at these `addresses` allow; return None if it is for none."""
        path, _, query = request.path.partition("?")
        if path == LOGIN:
            return _page(ws, LOGIN_PAGE)
        kind = rest.kind_of(path)
        if kind is None or ("api" not in addresses and self._hits("rest-moved")):
            return None
        fault = next((name for name in REST_FAULTS if any(self._hits(f"{at}-{name}") for at in addresses)), None)
        if fault == "down":
            return ws.respond(503, "Down\n")
        if fault == "forbid":
            return ws.respond(403, "Forbidden\n")
        if fault == "html":
            return _page(ws, LOGIN_PAGE)
        if fault == "login":
            response = ws.respond(302, "")
            response.headers["Location"] = LOGIN
            return response
        if fault == "error" or not self._pace.allows(kind, time.monotonic()):
            answer = rest.TOO_MANY
        else:
            answer = rest.answer(path, dict(parse_qsl(query)), self._market_of, now_ms())
        response = _json(ws, answer)
        if any("gzip" in value for value in request.headers.get_all("Accept-Encoding")):
            response.body = gzip.compress(response.body)
            response.headers["Content-Encoding"] = "gzip"
            del response.headers["Content-Length"]
            response.headers["Content-Length"] = str(len(response.body))
        if fault == "half":
            response.body = response.body[: len(response.body) // 2]
        return response

    def _market_of(self, symbol: str) -> Market:
        """Return a symbol's market; one in which nothing has happened yet where nobody has subscribed to it."""
        return self._markets.get(symbol) or Market(symbol, self._options.seed)

    def _status(self) -> dict[str, Any]:
        return {
            "accepted": self._accepted,
            "connections": [
                {
                    "conn": client.number,
                    "subscriptions": [f"{symbol} {channel}" for symbol, channel in client.subscriptions],
                    "sent": client.sent,
                    "backlog": client.backlog(),
                }
                for client in sorted(self._clients, key=lambda client: client.number)
            ],
            "sent": self._sent,
            "struck": self._struck,
        }

    def _control(self, ws: ServerConnection, query: dict[str, str]) -> Response:
        try:
            if query.get("fault") == "none":
                self._heal()
            else:
                self._apply(Fault.parse(query.get("fault", ""), query.get("count")))
        except ValueError as problem:
            return ws.respond(400, f"{problem}\n")
        return _json(ws, self._status())


def _json(ws: ServerConnection, value: str | dict[str, Any]) -> Response:
    return _respond(ws, "application/json", value if isinstance(value, str) else json.dumps(value))


def _page(ws: ServerConnection, text: str) -> Response:
    return _respond(ws, "text/html; charset=utf-8", text)


def _respond(ws: ServerConnection, kind: str, text: str) -> Response:
    response = ws.respond(200, text)
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = kind
    return response


def _symbol_of(frame: bytes) -> str:
    """Return the symbol of a frame, or an empty text if it has none or cannot be read."""
    try:
        value = json.loads(frame)
    except (ValueError, RecursionError):
        return ""
    symbol = value.get("symbol") if isinstance(value, dict) else None
    return symbol if isinstance(symbol, str) else ""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _number(kind: Callable[[str], float], low: float, high: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not a number from {low:g} to {high:g}")
        return value

    return read


def _fault(text: str) -> Fault:
    try:
        fault = Fault.parse(text)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None
    if fault.name in STRIKES and fault.seconds is None:
        raise argparse.ArgumentTypeError(f"nobody is connected yet that {text} could strike: give {text}:SECONDS")
    return fault


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="exchange",
        description="A simulated MEXC futures exchange on 127.0.0.1: WebSocket and REST.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(
            [
                "faults that strike every open connection (NAME:SECONDS repeats them):",
                *(f"  {name:<22}{strike.__doc__}" for name, strike in STRIKES.items()),
                "faults that hold (NAME:SECONDS heals them):",
                *(f"  {name:<22}{text}" for name, text in LASTING.items()),
                "at run time, with any HTTP client, on the WebSocket's port:",
                "  /control?fault=NAME[:SECONDS][&count=N]   apply it now, N times or to the next N",
                "  /control?fault=none                       heal everything",
                "  /status                                   connections, frames sent, faults applied",
            ]
        ),
    )
    add = parser.add_argument
    add("--port", type=_number(int, 0, 65535), default=8765, help="0 takes any free one (default: %(default)s)")
    add("--rest-port", type=_number(int, 0, 65535), help="0 takes any free one (default: the one after --port, or 0)")
    add("--rate", type=_number(float, 0, 1e6), help="frames/s of each symbol; 0: as they are read (default: MEXC's)")
    add("--frames", type=_number(int, 1, 1e12), default=math.inf, help="per connection and symbol, then no more")
    add("--seed", type=int, default=0, help="of the simulated markets (default: %(default)s)")
    add("--replay", type=Path, metavar="FILE", help="send this file's lines, as they are, instead of a simulation")
    add("--log", type=Path, metavar="FILE", help="append each market frame that was sent")
    add("--tls", type=Path, metavar="FILE", help="be within TLS, REST aside, with this key and certificate, as PEM")
    add(
        "--ping-limit",
        type=_number(float, 0.01, 1e6),
        default=PING_LIMIT,
        help="seconds without ping (default: %(default)s)",
    )
    add("--fault", type=_fault, action="append", default=[], metavar="NAME[:SECONDS]", help="misbehave; see below")
    return parser


def main() -> int:
    """Run the exchange as the command line says; return the exit code."""
    values = vars(_parser().parse_args())
    if values["rest_port"] is None:
        values["rest_port"] = values["port"] + 1 if 0 < values["port"] < 65535 else 0
    options = Options(**{**values, "fault": tuple(values["fault"])})
    try:
        asyncio.run(Exchange(options).run())
    except OSError as problem:
        where = problem.filename or (options.tls if isinstance(problem, ssl.SSLError) else options.log)
        print(f"exchange: cannot use {where}: {problem.strerror or problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
