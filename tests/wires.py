"""A TCP proxy whose connections have each a fate of their own: cut, stalled, or late."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Wire:
    """One connection from a client to a server."""

    def __init__(self, client: socket.socket, server: socket.socket, stalled_for: float) -> None:
        self._ends = client, server
        self.flows = threading.Event()
        """Clear it, and nothing passes; the connection stays."""
        self.lag = 0.0
        """Seconds by which all that comes from the server is late."""
        self.is_open = True
        self._late: queue.Queue[tuple[float, bytes]] = queue.Queue()
        self._start(self._pump, server, lambda data: self._late.put((time.monotonic(), data)))
        self._start(self._deliver, client)
        self._start(self._pump, client, server.sendall)
        threading.Timer(stalled_for, self.flows.set).start()

    def cut(self) -> None:
        """End it, as a reset would."""
        self.is_open = False
        self.flows.set()
        self._late.put((0.0, b""))
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _start(self, run: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=run, args=arguments, daemon=True).start()

    def _pump(self, source: socket.socket, send: Callable[[bytes], object]) -> None:
        with contextlib.suppress(OSError):
            while self.is_open and (data := source.recv(65536)):
                self.flows.wait()
                send(data)
        self.cut()

    def _deliver(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while self.is_open:
                since, data = self._late.get()
                time.sleep(max(0.0, since + self.lag - time.monotonic()))
                client.sendall(data)


class Wires:
    """Forwards connections to 127.0.0.1:`target`; use `open_wires`."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.wires: list[Wire] = []
        """All that were made, the oldest first."""
        self.next_stalled_for: Callable[[], float] = lambda: 0.0
        """Gives the seconds for which a new wire lets nothing pass."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def open(self) -> list[Wire]:
        return [wire for wire in self.wires if wire.is_open]

    def close(self) -> None:
        """Take no more connections, and end those there are."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for wire in self.wires:
            wire.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    client.close()
                    continue
                self.wires.append(Wire(client, server, self.next_stalled_for()))


@contextmanager
def open_wires(target: int) -> Iterator[Wires]:
    """Give a proxy to 127.0.0.1:`target`, and close it."""
    wires = Wires(target)
    try:
        yield wires
    finally:
        wires.close()
