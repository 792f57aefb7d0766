"""ClickHouse's native protocol, as a server speaks it at revision 54429.

In come a client's bytes, out go its packets as values; and the other way round, replies as bytes. Blocks are not
decoded: they are measured, so that the engine's Native format passes through as it is in both directions.

A source that ends raises EOFError; bytes that are not this protocol raise ProtocolError. Nothing here allocates by
a length that a client merely claims.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

REVISION = 54429  # the first with settings as strings, and the last before several that a server need not know

HELLO, QUERY, DATA, CANCEL, PING = range(5)  # a client's packets

PONG = b"\x04"
END_OF_STREAM = b"\x05"

NOT_FOUND_COLUMN_IN_BLOCK = 10  # ClickHouse's codes for its exceptions
NOT_IMPLEMENTED = 48
UNEXPECTED_PACKET = 101
UNKNOWN_SETTING = 115
SAME_QUERY_ID = 216
NOT_ENOUGH_SPACE = 243
AUTHENTICATION_FAILED = 516
STD_EXCEPTION = 1001


class ServerError(Exception):
    """An exception for the client: `code` is ClickHouse's, `text` the message without the code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class ProtocolError(ServerError):
    """The bytes are not this protocol: there is no telling where the next packet begins."""

    def __init__(self, text: str, code: int = UNEXPECTED_PACKET) -> None:
        super().__init__(code, text)


class Reader:
    """Reads values from `data`, then from `receive`, which returns some bytes, or none at the end."""

    def __init__(self, receive: Callable[[], bytes], data: bytes = b"") -> None:
        self._receive = receive
        self._data = bytearray(data)
        self._at = 0

    @property
    def pending(self) -> bool:
        """Whether bytes are here that have not been read yet."""
        return self._at < len(self._data)

    def forget(self) -> None:
        """Drop what has been read, so that the buffer holds one packet at most."""
        del self._data[: self._at]
        self._at = 0

    def mark(self) -> int:
        """Return the position, for `since`; good until the next `forget`."""
        return self._at

    def since(self, mark: int) -> bytes:
        """Return the bytes read since `mark`."""
        with memoryview(self._data) as whole, whole[mark : self._at] as part:  # one copy, not two
            return bytes(part)

    def skip(self, count: int) -> None:
        """Read `count` bytes and leave them."""
        self._at += count
        self._reach(self._at)

    def take(self, count: int) -> bytes:
        """Read `count` bytes."""
        mark = self._at
        self.skip(count)
        return self.since(mark)

    def varint(self) -> int:
        """Read an unsigned integer in groups of 7 bits, lowest first."""
        value = 0
        for shift in range(0, 70, 7):
            self.skip(1)
            byte = self._data[self._at - 1]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ProtocolError("a number of more than 64 bits")

    def uint64(self) -> int:
        """Read eight bytes as an unsigned integer."""
        return int.from_bytes(self.take(8), "little")

    def string(self) -> str:
        """Read a string; bytes that are not UTF-8 survive a round trip through `encode_string`."""
        return self.take(self.varint()).decode(errors="surrogateescape")

    def skip_strings(self, count: int) -> None:
        """Read `count` strings and leave them: a tight loop with its own varint, since every stored row passes here."""
        data, at, size = self._data, self._at, len(self._data)
        for _ in range(count):
            length = shift = 0
            while True:
                if at >= size:
                    size = self._reach(at + 1)
                byte = data[at]
                at += 1
                length |= (byte & 0x7F) << shift
                if byte < 0x80:
                    break
                shift += 7
                if shift > 63:
                    raise ProtocolError("a string's length of more than 64 bits")
            at += length
        self._reach(at)
        self._at = at

    def _reach(self, end: int) -> int:
        """Receive until the data reaches `end`; return where it ends."""
        while len(self._data) < end:
            received = self._receive()
            if not received:
                raise EOFError
            self._data += received
        return len(self._data)


def reader_of(data: bytes) -> Reader:
    """Return a reader of bytes that are all here."""
    return Reader(lambda: b"", data)


# What a client sends


@dataclass(frozen=True)
class Hello:
    """A client's first packet."""

    revision: int
    database: str
    user: str
    password: str


@dataclass(frozen=True)
class Query:
    """A statement; `settings` are (name, value, whether it must be known)."""

    query_id: str
    settings: list[tuple[str, str, bool]]
    compressed: bool
    sql: str


@dataclass(frozen=True)
class Block:
    """Columns of equal length; `data` is the block as the engine's Native format has it."""

    columns: list[tuple[str, str]]
    rows: int
    data: bytes


def read_hello(reader: Reader) -> Hello:
    """Read a Hello's contents, after its packet number."""
    reader.string()  # the client's name
    for _ in ("major", "minor"):
        reader.varint()
    return Hello(reader.varint(), reader.string(), reader.string(), reader.string())


def read_query(reader: Reader) -> Query:
    """Read a Query's contents, after its packet number."""
    query_id = reader.string()
    _skip_client_info(reader)
    settings = []
    while name := reader.string():
        important = bool(reader.varint() & 1)
        settings.append((name, reader.string(), important))
    reader.varint()  # the stage up to which to process: always to the end
    compressed = bool(reader.varint())
    return Query(query_id, settings, compressed, reader.string())


_INFO_SIZES = {1: 1, 2: 4}  # overflows, bucket


def read_data(reader: Reader) -> Block:
    """Read a Data's contents, after its packet number."""
    reader.string()  # a temporary table's name
    while field := reader.varint():  # the block's info
        if field not in _INFO_SIZES:
            raise ProtocolError(f"field {field} in a block's info")
        reader.skip(_INFO_SIZES[field])
    return read_block(reader)


def _skip_client_info(reader: Reader) -> None:
    if reader.take(1) == b"\0":
        return
    for _ in ("initial user", "initial query id", "initial address"):
        reader.string()
    if reader.take(1) != b"\1":
        raise ProtocolError("a query that does not come by TCP")
    for _ in ("system user", "host", "client"):
        reader.string()
    for _ in ("major", "minor", "revision"):
        reader.varint()
    reader.string()  # the quota's key
    reader.varint()  # the client's patch version


# What a server sends


def encode_varint(value: int) -> bytes:
    """Return an unsigned integer in groups of 7 bits, lowest first."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def encode_string(text: str) -> bytes:
    """Return a string with its length in front."""
    encoded = text.encode(errors="surrogateescape")
    return encode_varint(len(encoded)) + encoded


def encode_hello(version: tuple[int, int, int], timezone: str, display_name: str) -> bytes:
    """Return the server's Hello."""
    major, minor, patch = map(encode_varint, version)
    about = encode_string(timezone) + encode_string(display_name)
    return b"\0" + encode_string("ClickHouse") + major + minor + encode_varint(REVISION) + about + patch


def encode_data(block: bytes) -> bytes:
    """Return a block in the engine's Native format as a Data packet."""
    return b"\1\0\1\0\2\xff\xff\xff\xff\0" + block


def encode_header(columns: list[tuple[str, str]]) -> bytes:
    """Return a Data packet that says only what the columns are: (name, type)."""
    described = (encode_string(name) + encode_string(kind) for name, kind in columns)
    return encode_data(encode_varint(len(columns)) + b"\0" + b"".join(described))


def header_of(block: bytes) -> bytes:
    """Return a Data packet with the columns of a block of the engine's, empty if it has a type not known here."""
    try:
        return encode_header(read_block(reader_of(block)).columns)
    except ProtocolError:
        return b""


def encode_exception(error: ServerError) -> bytes:
    """Return an Exception packet."""
    text = f"DB::Exception: {error.text}"
    head = b"\2" + struct.pack("<i", error.code)
    return head + encode_string("DB::Exception") + encode_string(text) + encode_string("") + b"\0"


# Where a block ends


def read_block(reader: Reader) -> Block:
    """Read a block in the Native format."""
    mark = reader.mark()
    width, rows = reader.varint(), reader.varint()
    columns = []
    for _ in range(width):
        name, kind = reader.string(), reader.string()
        columns.append((name, kind))
        if rows:
            layout = _layout(kind)
            reader.skip(layout.prefix)
            layout.skip(reader, rows)
    return Block(columns, rows, reader.since(mark))


class _Layout(NamedTuple):
    """How a type's values lie: bytes once per column before all else, and how to skip so many values."""

    prefix: int
    skip: Callable[[Reader, int], None]


_SIZES = {
    1: "UInt8 Int8 Bool Enum8 Nothing",
    2: "UInt16 Int16 Enum16 Date BFloat16",
    4: "UInt32 Int32 Float32 Date32 DateTime Time IPv4",
    8: "UInt64 Int64 Float64 DateTime64 Time64",
    16: "UInt128 Int128 UUID IPv6",
    32: "UInt256 Int256",
}
_SIZE_OF = {name: size for size, names in _SIZES.items() for name in names.split()}
_DECIMAL_DIGITS = ((9, 4), (18, 8), (38, 16), (76, 32))


@lru_cache(maxsize=1000)
def _layout(kind: str) -> _Layout:
    try:
        return _parse_type(kind)
    except (ValueError, IndexError, StopIteration, RecursionError):
        raise ProtocolError(f"a column of type {kind[:100]}") from None


def _parse_type(kind: str) -> _Layout:
    name, _, rest = kind.partition("(")
    arguments = _split(rest.removesuffix(")"), ",")
    if name in _SIZE_OF:
        return _fixed(_SIZE_OF[name])
    if name.startswith("Interval"):
        return _fixed(8)
    if name == "String":
        return _Layout(0, Reader.skip_strings)
    if name == "FixedString":
        return _fixed(int(arguments[0]))
    if name == "Decimal":
        return _fixed(next(size for digits, size in _DECIMAL_DIGITS if int(arguments[0]) <= digits))
    if name == "Nullable":
        return _tuple([_fixed(1), _layout(arguments[0])])
    if name == "SimpleAggregateFunction":
        return _layout(arguments[1])
    if name == "LowCardinality":
        return _low_cardinality(_layout(re.sub(r"^Nullable\((.*)\)$", r"\1", arguments[0])))
    if name == "Array":
        return _array(_layout(arguments[0]))
    if name == "Tuple":
        return _tuple([_layout(_split(argument, " ")[-1]) for argument in arguments])  # each "name type" or "type"
    if name == "Map":
        return _array(_tuple([_layout(argument) for argument in arguments]))
    raise ValueError(kind)


def _fixed(size: int) -> _Layout:
    return _Layout(0, lambda reader, rows: reader.skip(size * rows))


def _tuple(elements: list[_Layout]) -> _Layout:
    def skip(reader: Reader, rows: int) -> None:
        for element in elements:
            element.skip(reader, rows)

    return _Layout(sum(element.prefix for element in elements), skip)


def _array(element: _Layout) -> _Layout:
    def skip(reader: Reader, rows: int) -> None:
        if rows:
            reader.skip(8 * (rows - 1))
            element.skip(reader, reader.uint64())  # the last array's end is the number of elements

    return _Layout(element.prefix, skip)


def _low_cardinality(value: _Layout) -> _Layout:
    def skip(reader: Reader, rows: int) -> None:
        if rows:
            index_size = 1 << (reader.uint64() & 0xF)
            value.skip(reader, reader.uint64())
            reader.skip(index_size * reader.uint64())

    return _Layout(8 + value.prefix, skip)


_PIECES = re.compile(r"""'(?:[^'\\]|\\.)*'|`(?:[^`\\]|\\.)*`|.""", re.DOTALL)


def _split(text: str, separator: str) -> list[str]:
    """Split a type's arguments at the separators that are neither quoted nor in brackets."""
    parts, depth = [""], 0
    for piece in _PIECES.findall(text):
        depth += (piece == "(") - (piece == ")")
        if piece == separator and not depth:
            parts.append("")
        else:
            parts[-1] += piece
    return [part.strip() for part in parts]
