"""What a fleet of collectors says: their lines with their names before them, and their figures, for one METRICS_PORT.

In: a pipe for each of them, and a socket on which it answers with its figures. Out: lines on stdout; the figures of all
on http://METRICS_HOST:METRICS_PORT/metrics; what MEXC's REST says of their contracts, asked for all at once. Promise:
whether anybody reads or asks, no collector waits for it. It is a process of its own, with threads, so that the one that
forks collectors needs none; it ends when nobody is left who could say something.
"""

from __future__ import annotations

import os
import re
import select
import selectors
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from config import Settings, SymbolConfig
from pipeline.collect.lines import Lines
from pipeline.contracts import check_contracts
from pipeline.rest import Rest

_PIECE = 1 << 16  # bytes to read at once, and the longest line
_ANSWER = 1 << 18  # bytes; the figures of a collector take a tenth of that
_PATIENCE = 2.0  # seconds for all to answer with their figures
_LAST_LINES = 2.0  # seconds that the last lines have to be read


@dataclass(frozen=True)
class Source:
    """A collector as seen from here; its descriptors: a pipe to read its lines from, a socket to ask for figures."""

    config: SymbolConfig
    lines: int
    figures: int

    @property
    def name(self) -> str:
        return self.config["table_name"]


def speak(sources: Sequence[Source], own: int, settings: Settings, listener: int | None) -> None:
    """Do all of it until every pipe is at its end; `own` is that of the fleet's own lines, `listener` listens."""
    lines = Lines()
    if settings.log_time:
        lines.add_times()
    if listener is not None:
        _serve_figures(sources, listener)
    threading.Thread(target=_check_contracts, args=(sources, settings, lines), daemon=True).start()
    begun: dict[int, bytes] = {}
    with selectors.DefaultSelector() as selector:
        for descriptor, name in [(own, ""), *((source.lines, source.name) for source in sources)]:
            selector.register(descriptor, selectors.EVENT_READ, f"{name:<10} | " if name else "")
        while selector.get_map():
            for key, _ in selector.select():
                piece = os.read(key.fd, _PIECE)
                *whole, rest = (begun.pop(key.fd, b"") + piece).split(b"\n")
                if not piece:
                    selector.unregister(key.fd)
                if rest and (not piece or len(rest) > _PIECE):
                    whole, rest = [*whole, rest], b""
                begun[key.fd] = rest
                if whole:
                    lines.say("\n".join(key.data + line.decode(errors="replace") for line in whole))
    lines.flush(_LAST_LINES)


def _check_contracts(sources: Sequence[Source], settings: Settings, lines: Lines) -> None:
    for line in check_contracts(Rest(settings), settings, [source.config for source in sources]):
        lines.say(line)


# Figures


def _serve_figures(sources: Sequence[Source], listener: int) -> None:
    """Answer Prometheus at a listening socket, in threads."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer  # only where it is wanted

    asking = _Asking(sources)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = asking.ask().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing: this is asked for every few seconds."""

    server = ThreadingHTTPServer(("", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = socket.socket(fileno=listener)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()


class _Asking:
    """Asks all collectors for their figures, one scrape at a time."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = {socket.socket(fileno=source.figures): source for source in sources}
        self._lock = threading.Lock()
        self._numbers = count(1)

    def ask(self) -> str:
        """Return the figures of all that answer in time."""
        with self._lock:
            number = b"%d\n" % next(self._numbers)
            for asked in self._sources:
                try:
                    asked.send(number, socket.MSG_DONTWAIT)
                except OSError:  # it has left many questions unanswered
                    continue
            texts: dict[str, str] = {}
            until = time.monotonic() + _PATIENCE
            while len(texts) < len(self._sources) and (left := until - time.monotonic()) > 0:
                for asked in select.select(self._sources, [], [], left)[0]:
                    answer = asked.recv(_ANSWER)
                    if answer.startswith(number):  # else it is that to an earlier question
                        texts[self._sources[asked].name] = answer.removeprefix(number).decode()
        labels = {
            source.name: f'symbol="{source.config["symbol"]}",table="{source.name}"'
            for source in self._sources.values()
        }
        return merged(labels, texts)


def merged(labels: Mapping[str, str], texts: Mapping[str, str]) -> str:
    """Return the figures of collectors as one text of Prometheus's, and which of them have answered.

    `labels` tells a collector's by its name, `texts` has what those said that answered. What a process says of itself
    has no labels, and gets those of its collector.
    """
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for name, text in texts.items():
        family = ""
        for line in text.splitlines():
            if line.startswith("#"):
                family = line.split(" ", 3)[2]
                head = heads.setdefault(family, [])
                if line not in head:
                    head.append(line)
            else:
                samples.setdefault(family, []).append(re.sub(r"^(\w+) ", rf"\1{{{labels[name]}}} ", line))
    said = [line for family, head in heads.items() for line in (*head, *samples.get(family, ()))]
    said += [
        "# HELP mexc_collector_up 1 where the collector has answered",
        "# TYPE mexc_collector_up gauge",
        *(f"mexc_collector_up{{{labels[name]}}} {float(name in texts)}" for name in labels),
    ]
    return "\n".join([*said, ""])
