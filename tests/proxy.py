"""A TCP proxy that cuts connections where a test wants it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Direction = Literal["to server", "to client"]


class Proxy:
    """Forwards connections to 127.0.0.1:`target`; each direction can be cut after a number of bytes.

    What passes is held up for `delay` seconds: a slow answer, not the packets and the window of a long line.
    """

    def __init__(self, target: int, delay: float) -> None:
        self._delay = delay
        self._target = target
        self._lock = threading.Lock()
        self._cut: tuple[Direction, int] | None = None
        self._open: set[socket.socket] = set()
        self.passed: dict[Direction, int] = {"to server": 0, "to client": 0}
        self.cuts = 0
        self.port = 0
        self._listen()

    def cut_after(self, direction: Direction, count: int) -> None:
        """Let `count` more bytes pass in `direction`, then end that connection, once."""
        with self._lock:
            self._cut = (direction, count)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Cut all connections and let new ones be refused, for as long as the context lasts."""
        self.close()
        for end in list(self._open):
            _shut_down(end)
        try:
            yield
        finally:
            self._listen()

    def close(self) -> None:
        """Take no more connections."""
        _shut_down(self._listener)  # wakes the thread that accepts
        self._acceptor.join()
        self._listener.close()

    def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    client.close()
                    continue
                for end in (client, server):  # before any thread can close them
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for source, sink, direction in ((client, server, "to server"), (server, client, "to client")):
                    threading.Thread(target=self._forward, args=(source, sink, direction), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, direction: Direction) -> None:
        self._open.add(source)
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                with self._lock:
                    cut = False
                    if self._cut is not None and self._cut[0] == direction:
                        left = self._cut[1]
                        cut = len(data) > left
                        self._cut = None if cut else (direction, left - len(data))
                        data = data[:left] if cut else data
                    self.passed[direction] += len(data)
                    self.cuts += cut
                time.sleep(self._delay)
                sink.sendall(data)
                if cut:
                    break
        self._open.discard(source)
        for end in (source, sink):
            _shut_down(end)
            end.close()


def _shut_down(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


@contextmanager
def open_proxy(target: int, delay: float = 0) -> Iterator[Proxy]:
    """Give a proxy to 127.0.0.1:`target`, and close it."""
    proxy = Proxy(target, delay)
    try:
        yield proxy
    finally:
        proxy.close()
