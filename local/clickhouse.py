"""A real ClickHouse engine (chdb) on ClickHouse's native TCP protocol, for one machine without Docker.

    python3 -m local.clickhouse --port 9000 --data DIR

In come clients of the native protocol, on 127.0.0.1 only; out go the engine's answers, its exceptions with their
codes. DIR is laid out as ClickHouse does, and the `file` table function takes paths relative to it. One thing is lost
on the way out: a result's type DateTime('zone') arrives as DateTime.

An INSERT's blocks reach the engine together, once its closing empty block is here: all of it is stored, as one
block, or nothing. A client that vanishes or talks nonsense costs its own connection only. What was acknowledged is
there again after a kill; SIGINT and SIGTERM let running statements finish, then exit with 0. What keeps the server
from starting is one line on stderr, and exit code 2.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import select
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from config import PROJECT, ConfigError, load_settings
from local import native
from local.native import Block, ProtocolError, Query, Reader, ServerError

DEFAULT_DATA = PROJECT / "local-data" / "clickhouse"
STOP_GRACE = 1.0  # seconds for clients to take what is being sent to them when the server stops
RECEIVE_SIZE = 1 << 18
MIN_FREE = 32 << 20  # bytes; chdb does not notice that a disk is full, acknowledges the rows and damages the table


class StartError(Exception):
    """Why the server cannot start, in one line."""


# Statements

_QUOTED = r"""'(?:[^'\\]|\\.)*'|`(?:[^`\\]|\\.)*`|"(?:[^"\\]|\\.)*\""""
_COMMENT = r"--[^\n]*|/\*.*?\*/"
_NAME = r'(?:`(?:[^`\\]|\\.)+`|"(?:[^"\\]|\\.)+"|[A-Za-z_]\w*)'

_INSERT = re.compile(
    rf"""(?:\s|{_COMMENT})* INSERT \s+ INTO \s+ (?:TABLE\s+)?
    (?P<table>{_NAME} (?:\s*\.\s*{_NAME})?) \s*
    (?:\( (?P<columns>(?:{_QUOTED}|\([^()]*\)|[^()'`"])+) \))? \s*
    (?P<settings>SETTINGS\s.+?)? (?:VALUES|FORMAT\s+\w+) \s*;?\s*""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
_REPLACED = re.compile(
    rf"""(?P<processes>(?<![\w.`"]) (?:system|`system`|"system") \s*\.\s* (?:processes\b|`processes`|"processes"))
    | (?P<format>\bFORMAT\s+(?!(?:ASC|DESC)\b)\w+ (?=\s*(?:;\s*)?\Z | \s+SETTINGS\b))
    | {_QUOTED} | {_COMMENT}""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)


@dataclass(frozen=True)
class Statement:
    """A running statement, from when its Query packet was read."""

    query_id: str
    user: str
    database: str
    sql: str
    started: float = field(default_factory=time.monotonic)


class Processes:
    """The running statements: what `system.processes` shows.

    The engine's own table would miss an INSERT that still waits for its client's data, and has ids of its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, Statement] = {}

    @contextmanager
    def running(self, statement: Statement) -> Iterator[None]:
        """Show `statement` for as long as the context lasts; ServerError if one with its id is running."""
        with self._lock:
            if statement.query_id in self._running:
                text = f"Query with id = {statement.query_id} is already running."
                raise ServerError(native.SAME_QUERY_ID, f"{text} (QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING)")
            self._running[statement.query_id] = statement
        try:
            yield
        finally:
            with self._lock:
                del self._running[statement.query_id]

    def as_table(self) -> str:
        """Return the table as SQL that can stand after FROM."""
        with self._lock:
            statements = list(self._running.values())
        now = time.monotonic()
        rows = [
            f"(1, {_quote(each.user)}, {_quote(each.query_id)}, {now - each.started:f}, {_quote(each.sql)}, "
            f"{_quote(each.database)})"
            for each in statements
        ]
        names = "is_initial_query UInt8, user String, query_id String, elapsed Float64, query String, "
        return f"(SELECT * FROM values('{names}current_database String', {', '.join(rows)}))"


def _quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _identifier(name: str) -> str:
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


# The engine

ENGINE_ERRORS = (RuntimeError, UnicodeDecodeError)  # chdb raises the second for messages that are not UTF-8


class Engine:
    """The embedded engine on its data directory; a process can have one. Raises StartError."""

    def __init__(self, data: Path) -> None:
        try:
            import chdb  # here, for it takes half a second and starts an engine of its own
        except ModuleNotFoundError:
            raise StartError("The ClickHouse engine, the package chdb, is not here: make demo gets it") from None

        chdb._chdb.set_signal_handlers_enabled(0)  # they are ours
        self._data = data
        self._connect = chdb.connect
        self.schema = object()  # another one after every statement that may have changed a table
        self._keeper = self._first_connection()  # the engine runs while it has a connection
        about = self._keeper.query("SELECT version(), timezone(), hostName()", "JSONCompact")
        self.version, self.timezone, self.host = json.loads(about.bytes())["data"][0]
        names = self._keeper.query("SELECT name FROM system.settings", "JSONCompact")
        self.settings = frozenset(name for (name,) in json.loads(names.bytes())["data"])

    def _first_connection(self) -> Any:
        with tempfile.TemporaryFile() as said:
            stderr = os.dup(2)
            os.dup2(said.fileno(), 2)
            try:
                return self.connect()
            except ENGINE_ERRORS as error:
                said.seek(0)
                reason = said.read().decode(errors="replace").strip() or str(error)  # the first says why
                text = _server_error(RuntimeError(reason)).text
                raise StartError(f"cannot open the data in {self._data}: {' '.join(text.split())}") from None
            finally:
                os.dup2(stderr, 2)
                os.close(stderr)

    def connect(self) -> Any:
        """Return a new connection to the engine."""
        return self._connect(str(self._data))

    def require_space(self) -> None:
        """Raise ServerError if the disk is too full to be written to."""
        disk = os.statvfs(self._data)
        free = disk.f_bavail * disk.f_frsize
        if free < MIN_FREE:
            text = f"Cannot insert: {free >> 20} MiB are free on the disk, {MIN_FREE >> 20} MiB are needed."
            raise ServerError(native.NOT_ENOUGH_SPACE, f"{text} (NOT_ENOUGH_SPACE)")

    def close(self) -> None:
        """Stop the engine, when all sessions are closed."""
        self._keeper.close()


class Session:
    """One client's state in the engine: current database, settings, temporary tables. Raises ServerError."""

    def __init__(self, engine: Engine, database: str) -> None:
        self._engine = engine
        self._samples: dict[tuple[str, str], list[tuple[str, str]]] = {}
        self._samples_schema = engine.schema
        self.database = database
        self._open()

    def _open(self) -> None:
        self._connection = self._engine.connect()
        self._settings: dict[str, str] = {}
        try:
            self._connection.query(f"USE {_identifier(self.database)}")
        except ENGINE_ERRORS as error:
            self.close()
            raise _server_error(error) from None

    def close(self) -> None:
        """Free what the engine holds for this session."""
        self._connection.close()

    def apply(self, settings: dict[str, str]) -> None:
        """Put these settings in force, and only these, for what follows."""
        if settings == self._settings:
            return
        changes = [f"{name} = {_quote(value)}" for name, value in settings.items()]
        changes += [f"{name} = DEFAULT" for name in self._settings if name not in settings]
        try:
            self._connection.query("SET " + ", ".join(changes))
        except ENGINE_ERRORS as error:
            # Some may be in force now, and some (readonly) cannot be taken back: begin anew.
            had_some = bool(self._settings)
            self.close()
            self._open()
            if not had_some:
                raise _server_error(error) from None
            self.apply(settings)
        self._settings = dict(settings)

    def run(self, sql: str) -> Generator[bytes, None, None]:
        """Run a statement and yield its result's blocks, in the Native format; a SELECT is not held as a whole."""
        encoded = sql.encode(errors="surrogateescape")
        try:
            with self._connection.send_query(encoded, "Native") as stream:
                for chunk in stream:
                    yield chunk.bytes()
        except ENGINE_ERRORS as error:
            if "Code: 36. DB::Exception: Streaming query is not supported" not in str(error):
                raise _server_error(error) from None
            yield from self._run_at_once(encoded)

    def _run_at_once(self, sql: bytes) -> Generator[bytes, None, None]:
        """Run a statement that is no SELECT."""
        try:
            result = self._connection.query(sql, "Native").bytes() or b""
        except ENGINE_ERRORS as error:
            raise _server_error(error) from None
        finally:
            self._engine.schema = object()
        if re.match(rb"\s*USE\b", sql, re.IGNORECASE):
            ((self.database,),) = self._rows("SELECT currentDatabase()")
        reader = native.reader_of(result)
        while reader.pending:
            yield native.read_block(reader).data

    def describe(self, select: str) -> list[tuple[str, str]]:
        """Return the names and types of a SELECT's columns."""
        text = select.rstrip("; \t\r\n")
        return [(name, kind) for name, kind, *_ in self._rows(f"DESCRIBE ({text}\n)")]

    def insert_columns(self, table: str, columns: str) -> list[tuple[str, str]]:
        """Return the names and types that an INSERT into `columns` of `table` takes; both as they stand in SQL."""
        if self._samples_schema is not self._engine.schema:
            self._samples_schema = self._engine.schema
            self._samples.clear()
        if (table, columns) not in self._samples:
            self._samples[table, columns] = self.describe(f"SELECT {columns} FROM {table}")
        return self._samples[table, columns]

    def insert(self, sql: str, blocks: list[Block]) -> None:
        """Store all blocks, as one, or nothing; `sql` is the INSERT up to its columns and settings."""
        try:
            with self._connection.send_insert(sql, "Native") as inserter:
                for block in blocks:
                    inserter.append(block.data)
                inserter.finish()
        except ENGINE_ERRORS as error:
            raise _server_error(error) from None

    def _rows(self, sql: str) -> list[list[Any]]:
        try:
            result = self._connection.query(sql.encode(errors="surrogateescape"), "JSONCompact")
        except ENGINE_ERRORS as error:
            raise _server_error(error) from None
        rows: list[list[Any]] = json.loads(result.bytes())["data"]
        return rows


def _server_error(error: Exception) -> ServerError:
    origin = error.__cause__ or error
    text = origin.object.decode(errors="replace") if isinstance(origin, UnicodeDecodeError) else str(error)
    found = re.search(r"Code: (\d+)\. DB::Exception: (.*)", text, re.DOTALL)
    return ServerError(int(found[1]), found[2]) if found else ServerError(native.STD_EXCEPTION, text)


# Clients


class Client:
    """A connection, from its Hello until it ends."""

    def __init__(self, server: Server, connection: socket.socket) -> None:
        self._server = server
        self._socket = connection
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = Reader(lambda: connection.recv(RECEIVE_SIZE))
        self._sending = False

    def serve(self) -> None:
        """Answer the client until it goes, and close the connection."""
        with self._socket, suppress(EOFError, OSError):
            try:
                self._session = self._greet()
            except ServerError as error:
                self._dismiss(error)
                return
            with closing(self._session):
                self._converse()

    def leave(self, *, cut: bool) -> None:
        """Take nothing more from the client; with `cut`, send nothing more if it does not take it. Thread-safe."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR if cut and self._sending else socket.SHUT_RD)

    def _send(self, data: bytes) -> None:
        self._sending = True
        self._socket.sendall(data)
        self._sending = False

    def _greet(self) -> Session:
        if self._reader.varint() != native.HELLO:
            raise ProtocolError("Unexpected packet from client: this is ClickHouse's native protocol")
        hello = native.read_hello(self._reader)
        if hello.revision < native.REVISION:
            raise ProtocolError(f"Client of revision {hello.revision} is too old: {native.REVISION} is needed")
        self._user = hello.user
        if (hello.user, hello.password) != self._server.credentials:
            text = f"{hello.user}: Authentication failed: password is incorrect, or there is no user with such name."
            raise ServerError(native.AUTHENTICATION_FAILED, f"{text} (AUTHENTICATION_FAILED)")
        engine = self._server.engine
        session = Session(engine, hello.database or "default")
        major, minor, patch = map(int, engine.version.split(".")[:3])
        self._send(native.encode_hello((major, minor, patch), engine.timezone, engine.host))
        return session

    def _dismiss(self, error: ServerError) -> None:
        """Send a last exception; closing with unread data would take it away from the client again."""
        self._send(native.encode_exception(error))
        self._socket.shutdown(socket.SHUT_WR)
        self._socket.settimeout(1)
        while self._socket.recv(RECEIVE_SIZE):
            pass

    def _converse(self) -> None:
        while True:
            try:
                self._reader.forget()
                self._take_packet(self._reader.varint())
            except ProtocolError as error:
                self._dismiss(error)
                return
            except ServerError as error:
                self._send(native.encode_exception(error))

    def _take_packet(self, packet: int) -> None:
        if packet == native.PING:
            self._send(native.PONG)
        elif packet == native.QUERY:
            self._answer(native.read_query(self._reader))
            self._send(native.END_OF_STREAM)
        elif packet == native.DATA:
            native.read_data(self._reader)  # the rest of a statement that has failed
        elif packet != native.CANCEL:  # which may come when all is done
            raise ProtocolError(f"Unexpected packet {packet} from client")

    def _answer(self, query: Query) -> None:
        if query.compressed:
            text = "Compression is not supported by this server: connect without it. (NOT_IMPLEMENTED)"
            raise ProtocolError(text, native.NOT_IMPLEMENTED)
        statement = Statement(query.query_id or str(uuid.uuid4()), self._user, self._session.database, query.sql)
        with self._server.processes.running(statement):
            if self._receive_blocks():
                text = "Temporary tables sent with a query are not supported by this server. (NOT_IMPLEMENTED)"
                raise ServerError(native.NOT_IMPLEMENTED, text)
            self._session.apply(self._known_settings(query))
            insert = _INSERT.fullmatch(query.sql)
            if insert:
                self._insert(insert)
            else:
                self._run(query.sql)

    def _known_settings(self, query: Query) -> dict[str, str]:
        known = self._server.engine.settings
        for name, _, important in query.settings:
            if important and name not in known:
                raise ServerError(native.UNKNOWN_SETTING, f"Unknown setting '{name}'. (UNKNOWN_SETTING)")
        return {name: value for name, value, _ in query.settings if name in known}

    def _insert(self, insert: re.Match[str]) -> None:
        columns = self._session.insert_columns(insert["table"], insert["columns"] or "*")
        self._send(native.encode_header(columns))
        blocks = self._receive_blocks()
        names = [name for name, _ in columns]
        for block in blocks:
            if [name for name, _ in block.columns] != names:
                text = f"The columns of a block are not the INSERT's: {', '.join(names)}. (NOT_FOUND_COLUMN_IN_BLOCK)"
                raise ServerError(native.NOT_FOUND_COLUMN_IN_BLOCK, text)
        if blocks:
            self._server.engine.require_space()
            target = f"INSERT INTO {insert['table']} ({', '.join(map(_identifier, names))})"
            self._session.insert(f"{target} {insert['settings'] or ''}", blocks)

    def _receive_blocks(self) -> list[Block]:
        """Return the blocks up to the closing empty one."""
        blocks: list[Block] = []
        while True:
            packet = self._reader.varint()
            if packet != native.DATA:
                raise ProtocolError(f"Unexpected packet {packet} from client: Data expected")
            block = native.read_data(self._reader)
            if not block.columns:
                return blocks
            blocks.append(block)
            self._reader.forget()

    def _run(self, sql: str) -> None:
        prepared = _REPLACED.sub(self._replacement, sql)
        has_header = False
        with closing(self._session.run(prepared)) as blocks:
            for block in blocks:
                if not has_header:
                    self._send(native.header_of(block))
                    has_header = True
                self._send(native.encode_data(block))
                if self._is_cancelled():
                    return
        if not has_header and re.match(rf"(?:\s|\(|{_COMMENT})*(?:SELECT|WITH)\b", sql, re.IGNORECASE | re.DOTALL):
            self._send(native.encode_header(self._session.describe(prepared)))

    def _replacement(self, found: re.Match[str]) -> str:
        if found["processes"]:
            return self._server.processes.as_table()
        if found["format"]:
            return ""  # formatting is the client's affair in this protocol
        return found[0]

    def _is_cancelled(self) -> bool:
        """Whether the client has asked to stop; EOFError when it has gone."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if not self._reader.pending and not poll.poll(0):
            return False
        packet = self._reader.varint()
        if packet != native.CANCEL:
            raise ProtocolError(f"Unexpected packet {packet} from client: a statement is running")
        return True


class Server:
    """Accepts clients and gives each a thread."""

    def __init__(self, engine: Engine, user: str, password: str) -> None:
        self.engine = engine
        self.credentials = (user, password)
        self.processes = Processes()
        self._clients: dict[threading.Thread, Client] = {}

    def serve(self, listener: socket.socket, stop: socket.socket) -> None:
        """Accept clients until something can be read from `stop`, then let them finish."""
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.register(stop, select.POLLIN)
        while stop.fileno() not in dict(poll.poll()):
            try:
                self._welcome(listener.accept()[0])
            except (OSError, RuntimeError) as error:  # out of files or threads, until some client goes
                print(f"cannot accept a client: {error}", file=sys.stderr, flush=True)
                time.sleep(0.1)
        self._finish()

    def _welcome(self, connection: socket.socket) -> None:
        self._clients = {thread: client for thread, client in self._clients.items() if thread.is_alive()}
        client = Client(self, connection)
        thread = threading.Thread(target=client.serve, daemon=True)
        thread.start()
        self._clients[thread] = client

    def _finish(self) -> None:
        deadline = time.monotonic() + STOP_GRACE
        while running := [thread for thread in self._clients if thread.is_alive()]:
            for thread in running:
                self._clients[thread].leave(cut=time.monotonic() > deadline)
            running[0].join(0.05)


# The command


def main() -> int:
    """Serve until SIGINT or SIGTERM; return the exit code."""
    try:
        settings = load_settings()
        parser = argparse.ArgumentParser(prog="python3 -m local.clickhouse", description=__doc__.splitlines()[0])
        parser.add_argument("--port", type=int, default=settings.clickhouse_port, help="0 takes any free one")
        parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="directory of the data")
        arguments = parser.parse_args()
        stop = _signals_to_socket()
        with _listen(arguments.port) as listener:
            data = _enter(arguments.data)
            engine = Engine(data)
            listener.listen(128)
            port = listener.getsockname()[1]
            print(f"ClickHouse {engine.version} (chdb) listening on 127.0.0.1:{port}, data in {data}", flush=True)
            Server(engine, settings.clickhouse_user, settings.clickhouse_password).serve(listener, stop)
        engine.close()
    except (ConfigError, StartError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _signals_to_socket() -> socket.socket:
    """Return a socket that becomes readable at SIGINT or SIGTERM."""
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    signal.set_wakeup_fd(writing.detach())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    return reading


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        listener.close()
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        advice = ": end what runs there, or set CLICKHOUSE_PORT" if taken else ""
        raise StartError(f"cannot listen on 127.0.0.1:{port}: {error}{advice}") from None
    return listener


def _enter(directory: Path) -> Path:
    """Make the data directory the current one: the engine's `file` function starts from there."""
    data = directory.absolute()
    if "?" in str(data):
        raise StartError(f"cannot use {data} for the data: the engine takes what follows a ? for options")
    try:
        data.mkdir(parents=True, exist_ok=True)
        os.chdir(data)
        if not os.access(data, os.W_OK):
            raise PermissionError(f"{data} is not writable")
    except OSError as error:
        raise StartError(f"cannot use {data} for the data: {error}") from None
    return data


if __name__ == "__main__":
    sys.exit(main())
