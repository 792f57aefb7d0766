"""MEXC's end of a WebSocket: what the simulated exchange and a replayed archive have in common.

In: the requests of a client at ``/edge``. Out: pongs, acknowledgements and errors as MEXC sends them, and what the
client has subscribed to. Promises: nothing that a client sends raises; who has sent no ping for a minute is told so and
disconnected.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Awaitable, Callable, Container, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosedError
from websockets.http11 import Request, Response
from websockets.protocol import State

from local.market import LEVELS

HOST = "127.0.0.1"
PATH = "/edge"
METHODS = {"sub.ticker": "ticker", "sub.deal": "deal", "sub.depth.full": "depth.full"}
PING_LIMIT = 60.0  # seconds
FULL_SPEED_BACKLOG = 256 << 10  # bytes not yet taken by a client; more would only add delay


def now_ms() -> int:
    """Return the time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


async def open_server(
    handler: Callable[[ServerConnection], Awaitable[None]],
    port: int,
    process_request: Callable[[ServerConnection, Request], Response | None],
    tls: ssl.SSLContext | None = None,
) -> Server:
    """Listen on a port, 0 for any free one, as MEXC does. Raises OSError, which names the address."""
    try:
        return await serve(
            handler,
            HOST,
            port,
            process_request=process_request,
            ssl=tls,
            compression=None,
            ping_interval=None,  # MEXC expects the client to ping
            close_timeout=1,
            server_header=None,
        )
    except OSError as problem:
        problem.filename = f"{HOST}:{port}"
        raise


@dataclass(eq=False)
class Session:
    """One connection, and what it has subscribed to: (symbol, channel) -> (compress, limit)."""

    ws: ServerConnection
    clock: Callable[[], int] = field(default=now_ms, kw_only=True)
    """What the exchange's clock says, in milliseconds since the epoch."""
    subscriptions: dict[tuple[str, str], tuple[bool, int]] = field(default_factory=dict, kw_only=True)

    async def attend(
        self,
        known: Container[str],
        subscribe: Callable[[str, str, dict[str, Any]], None],
        ping_limit: float = PING_LIMIT,
    ) -> None:
        """Answer the client until it leaves, or has not sent a ping for `ping_limit` seconds.

        `subscribe` takes what is asked for of a `known` symbol: the symbol, the method, all parameters.
        """
        with suppress(ConnectionClosedError):
            while not await self._listen(known, subscribe, ping_limit):
                if self.give_up(ping_limit):
                    return

    def give_up(self, ping_limit: float) -> bool:
        """Tell the client that it is disconnected for want of a ping; return whether it is."""
        self.answer("rs.error", f"more than {ping_limit:g} seconds no response, close the channel")
        self.close()
        return True

    async def _listen(
        self, known: Container[str], subscribe: Callable[[str, str, dict[str, Any]], None], ping_limit: float
    ) -> bool:
        """Answer a client until it leaves (True) or has not sent a ping for too long (False)."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(ping_limit) as patience:
                async for message in self.ws:
                    if self._answer(message, known, subscribe):
                        patience.reschedule(loop.time() + ping_limit)
        except TimeoutError:
            return False
        return True

    def _answer(
        self, message: str | bytes, known: Container[str], subscribe: Callable[[str, str, dict[str, Any]], None]
    ) -> bool:
        """Do what a client asks for; return whether it was a ping."""
        try:
            request = json.loads(message)
        except (ValueError, RecursionError):
            return False
        method = request.get("method") if isinstance(request, dict) else None
        if method == "ping":
            self.answer("pong", self.clock())
            return True
        if isinstance(method, str) and method in METHODS:
            param = request.get("param")
            symbol = param.get("symbol") if isinstance(param, dict) else None
            if not isinstance(symbol, str):
                self.ws.transport.abort()  # seen in the field
            elif symbol not in known:
                self.answer("rs.error", f"Contract [{symbol}] not exists")
            else:
                subscribe(symbol, method, param)
        return False  # MEXC does not answer a method that it does not know

    def subscribe(self, symbol: str, method: str, param: dict[str, Any]) -> None:
        """Note a subscription, for the first time or anew, and confirm it."""
        limit = next((limit for limit in (5, 10) if limit == param.get("limit")), LEVELS)
        self.subscriptions[symbol, METHODS[method]] = (param.get("compress") is not False, limit)
        self.answer(f"rs.{method}", "success")

    def answer(self, channel: str, data: str | int | dict[str, Any]) -> None:
        """Send a control frame."""
        frame = {"channel": channel, "data": data, "ts": self.clock()}
        self.send(json.dumps(frame, separators=(",", ":")).encode())

    def send(self, data: bytes, text: bool = True) -> None:
        """Hand a frame to the socket, if it is open; even as text it may hold any bytes."""
        broadcast((self.ws,), data, text=text)

    @property
    def is_open(self) -> bool:
        """Whether frames still go to the client."""
        return self.ws.state is State.OPEN and not self.ws.transport.is_closing()

    def backlog(self) -> int:
        """Return how many bytes wait for the client to read."""
        return self.ws.transport.get_write_buffer_size()

    @property
    def is_full(self) -> bool:
        """Whether the client is to read before it is sent more."""
        return self.backlog() > FULL_SPEED_BACKLOG and self.is_open

    def close(self) -> None:
        """Send a close frame without a code, as MEXC does: the client sees 1005."""
        if self.ws.state is State.OPEN:
            self.ws.protocol.send_close()  # the connection's own close() cannot do without a code
            self.ws.send_data()


async def room(sessions: Iterable[Session]) -> None:
    """Wait until all have taken most of what they were sent."""
    while any(session.is_full for session in sessions):
        await asyncio.sleep(0.001)
