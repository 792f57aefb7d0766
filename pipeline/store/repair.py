"""Save what can be saved of StripeLog tables after a power loss, with ClickHouse stopped.

In: a data directory of ClickHouse. Out: each damaged table cut back to its longest consistent prefix, and exit codes.
A StripeLog table is three files: data.bin has the blocks, index.mrk says where each block's columns begin in data.bin,
sizes.json says how far both are valid. ClickHouse syncs only sizes.json, so a power loss can leave it promising more
than the other two hold; reads then fail, and where sizes.json itself is missing or broken, the next start empties the
table or fails. What lies beyond the recorded sizes, ClickHouse cuts off by itself when it opens the table, so writing
sizes.json anew is nearly always the whole repair.

Promise: a healthy table is only read. Every file is replaced as a whole, by renaming, and the one before it is kept; if
this process is killed, the same command finishes the work. Nothing is done while ClickHouse runs on the directory.

What a power loss has left of a table that was just being deleted or made would keep ClickHouse from making it again,
since its UUID is given. That is deleted.

Both files are sequences of frames: 16 bytes of CityHash128 over all that follows, a byte for the compression method,
and two 32-bit sizes, compressed (with these 9 bytes) and not. A block is a frame with its numbers of columns and rows,
then one or more frames for each column; later blocks of one INSERT have their two numbers at the end of the previous
block's last frame. ClickHouse checks the hash of each frame that it comes across as it reads, also that of a block's
numbers, though it takes them from index.mrk. So all are checked here, and torn and zeroed pages and flipped bits are
found wherever they are.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import pyarrow
from clickhouse_cityhash.cityhash import CityHash128

from config import PROJECT, all_symbols, load_settings
from pipeline.files import sync
from pipeline.human import many

DATA, INDEX, SIZES = "data.bin", "index.mrk", "sizes.json"


class RepairError(Exception):
    """Nothing can be done in this directory; the text is one line that says why."""


class UnknownFormat(Exception):
    """Undamaged, but not written as this module knows it; the text says what is unknown."""


def default_directories() -> list[Path]:
    """Return the data directories of the local stack. Raises RepairError if there is none."""
    local = PROJECT / "local-data"
    found = [*local.glob("clickhouse"), *sorted(local.glob("*/clickhouse"))]
    if not found:
        raise RepairError(f"There is no ClickHouse data in {local}: say where it is, --repair DIR")
    return found


def repair_directory(directory: Path, confirm: Callable[[str], bool]) -> int:
    """Examine all StripeLog tables below `directory`, ClickHouse's own (with metadata/ and store/ in it), and repair.

    Prints what it finds and does; `confirm` is asked before anything is changed. Returns 0 when all tables are
    healthy or repaired, 1 when damage is left. Raises RepairError.
    """
    try:
        if not (directory / "metadata").is_dir() or not (directory / "store").is_dir():
            raise RepairError(f"{directory} is not a data directory of ClickHouse: it has no metadata/ and store/")
        with _engine_lock(directory):
            return _repair_locked(directory, confirm)
    except OSError as error:
        raise RepairError(f"{directory} cannot be repaired: {error}; be the owner of its files, or root") from None


def _repair_locked(directory: Path, confirm: Callable[[str], bool]) -> int:
    print(f"Examining the StripeLog tables in {directory}")
    damaged, left = [], 0
    for name, path in _tables(directory):
        try:
            finding = examine(path)
        except UnknownFormat as error:
            print(f"{name} is left alone: {error}")
            left = 1
        else:
            print(f"{name} {finding}", flush=True)
            if finding.damage:
                damaged.append((path, finding.prefix))
    leftovers = _leftovers(directory)
    for path in leftovers:
        print(f"{path.relative_to(directory)} is left of a table that was being deleted or made")
    if not damaged and not leftovers:
        print("Nothing to repair.")
        return left
    if not confirm("This cuts damaged tables back to what can be saved, and deletes what is left of deleted ones."):
        print("Nothing was changed.")
        return 1
    for path in leftovers:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    stamp = f"{datetime.now():%Y%m%d-%H%M%S-%f}"
    for path, prefix in damaged:
        cut_back(path, prefix, stamp)
    print(f"Repaired. The replaced files were kept beside the new ones, their names end in .{stamp}")
    print("Start ClickHouse: the collectors then send again what their journals hold of the lost rows.")
    return left


@contextmanager
def _engine_lock(directory: Path) -> Iterator[None]:
    """Hold the lock that keeps ClickHouse from opening `directory`, and that it holds while it runs there."""
    status = directory / "status"
    is_ours = not status.exists()  # it stays behind when ClickHouse is killed
    with status.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RepairError(f"{directory} is in use: stop ClickHouse first") from None
        try:
            _give_to_owner(status)
            yield
        finally:
            if is_ours:
                status.unlink()


_UUID = re.compile(r"^ATTACH (?:TABLE|DATABASE) \S+ UUID '([0-9a-f-]{36})'")


def _tables(directory: Path) -> list[tuple[str, Path]]:
    """Return the names and directories of all StripeLog tables that ClickHouse will open."""
    databases = {}
    for file in directory.glob("metadata/*.sql"):
        if found := _UUID.match(file.read_text(errors="replace")):
            databases[found[1]] = unquote(file.stem)
    tables = []
    for file in directory.glob("store/*/*/*.sql"):
        text = file.read_text(errors="replace")
        found = _UUID.match(text)
        if found and file.parent.name in databases and re.search(r"^ENGINE = StripeLog\b", text, re.MULTILINE):
            name = f"{databases[file.parent.name]}.{unquote(file.stem)}"
            tables.append((name, directory / "store" / found[1][:3] / found[1]))
    return sorted(tables)


def _leftovers(directory: Path) -> list[Path]:
    """Return what there is of our tables that are no more, or not yet; whatever could hold rows is not among it."""
    made = {
        found[1]
        for file in directory.glob("store/*/*/*.sql")
        if (found := _UUID.match(file.read_text(errors="replace")))
    }
    leftovers = []
    for uuid in sorted({config["uuid"] for config in all_symbols(load_settings())} - made):
        dropped = [*directory.glob(f"metadata_dropped/*.{uuid}.sql")]
        path = directory / "store" / uuid[:3] / uuid
        if path.is_dir() and (dropped or not any(path.iterdir())):
            leftovers.append(path)
        leftovers += dropped
    return leftovers


# What a table holds


class Entry(NamedTuple):
    """What index.mrk says of a block."""

    rows: int
    columns: list[int]
    """Where each column begins in data.bin."""
    header_size: int
    """Bytes of the block's numbers of columns and rows."""
    frames: tuple[int, int]
    """The bytes of index.mrk that this entry and its neighbours are in."""
    content: bytes
    """What is in these bytes."""
    content_end: int
    """Where in `content` this entry ends."""


class Prefix(NamedTuple):
    """The first blocks of a table, and how far they reach in its files."""

    rows: int = 0
    blocks: int = 0
    data_size: int = 0
    """Bytes of data.bin."""
    last: Entry = Entry(0, [], 0, (0, 0), b"", 0)
    """The last block's; the default is as if there were one before the first."""

    @property
    def ends_amid_frame(self) -> bool:
        """Whether the last frame of index.mrk has entries of later blocks, too."""
        return self.last.content_end < len(self.last.content)

    @property
    def index_size(self) -> int:
        """Bytes of index.mrk, without a frame that the prefix ends amid."""
        return self.last.frames[0] if self.ends_amid_frame else self.last.frames[1]


@dataclass(frozen=True)
class Finding:
    """A table's state."""

    prefix: Prefix
    """All of a healthy table; what can be saved of a damaged one."""
    damage: list[str]
    """What is wrong, file by file; nothing for a healthy table."""
    beyond: int
    """Bytes of both files after `prefix`."""
    lost_rows: str = ""
    """How many rows are after `prefix`, as far as index.mrk tells."""

    def __str__(self) -> str:
        holds = f"{many(self.prefix.rows, 'row')} in {many(self.prefix.blocks, 'block')}"
        if self.damage:
            found = ", ".join(self.damage)
            return f"is damaged: {found}\n  saved: {holds}\n  lost: {self.lost_rows}, {self.beyond:,} bytes"
        rest = f"; ClickHouse will cut {self.beyond:,} bytes after them" if self.beyond else ""
        return f"is healthy: {holds}{rest}"


def examine(path: Path) -> Finding:
    """Compare the three files of the table in `path`. Raises UnknownFormat, OSError."""
    with _Frames.of(path / DATA) as data, _Frames.of(path / INDEX) as index:
        is_recorded = (path / SIZES).exists()
        recorded = _recorded_sizes(path) if is_recorded else None
        if not is_recorded and not data.size + index.size:  # no row was ever written
            recorded = (0, 0)
        for prefix in _prefixes(data, index):
            if recorded == (prefix.data_size, prefix.index_size) and not prefix.ends_amid_frame:
                return Finding(prefix, [], data.size + index.size - sum(recorded))
        damage = [] if recorded else [f"{SIZES} is {'unreadable' if is_recorded else 'missing'}"]
        expected = recorded or (data.size, index.size)
        whole = (prefix.data_size, prefix.index_size)
        for name, frames, reached, size in zip((DATA, INDEX), (data, index), whole, expected, strict=True):
            if frames.size < size:
                damage.append(f"{name} has {frames.size:,} of {size:,} bytes")
            elif frames.reach(reached) < size:
                damage.append(f"{name} is unreadable from byte {frames.reach(reached):,} on")
        beyond = data.size + index.size - sum(whole)
        rows = sum(entry.rows for entry in _entries(index)) - prefix.rows
        is_exact = index.reach(0) >= recorded[1] if recorded else not beyond
        lost_rows = f"{many(rows, 'row')}" if is_exact else f"at least {many(rows, 'row')}"
        return Finding(prefix, damage or [f"{DATA} and {INDEX} disagree"], beyond, lost_rows)


def _recorded_sizes(path: Path) -> tuple[int, int] | None:
    """Return how far sizes.json says data.bin and index.mrk are valid; None if that cannot be read."""
    try:
        ((company, files),) = json.loads((path / SIZES).read_bytes()).items()
        if company in ("clickhouse", "yandex"):  # the second in old versions
            return int(files["data%2Ebin"]["size"]), int(files["index%2Emrk"]["size"])
    except (ValueError, LookupError, TypeError, AttributeError):
        pass
    return None


def _prefixes(data: _Frames, index: _Frames) -> Iterator[Prefix]:
    """Yield every consistent prefix, from the empty one to the longest."""
    prefix = Prefix()
    yield prefix
    for entry, following in pairwise(chain(_entries(index), [None])):
        assert entry is not None
        first, last = entry.columns[0], entry.columns[-1]
        if not prefix.blocks and data.walk(0, first) is None:  # its numbers; those of a later block are walked to below
            return
        if any(data.walk(*column) is None for column in pairwise(entry.columns)):
            return
        final = data.walk(last, following.columns[0]) if following else None
        if following and final is not None:
            has_own_frame = data.content_size(final) == following.header_size
            end: int | None = final if has_own_frame else following.columns[0]
        else:
            end = _strings_end(data, last, entry.rows + 2)  # a column's name and type are written like its values
        if end is None:
            return
        prefix = Prefix(prefix.rows + entry.rows, prefix.blocks + 1, end, entry)
        yield prefix
        if final is None:  # there is no block after this one, or its numbers are damaged
            return


def _strings_end(data: _Frames, at: int, count: int) -> int | None:
    """Return where the frame ends that has the end of the last of `count` strings from `at` on, or None."""
    content = b""
    while count:
        end = data.end(at)
        if end is None:
            return None
        content += data.content(at)
        position, size, at = 0, len(content), end
        while count:
            length = _varint(content, position)
            if length is None or sum(length) > size:
                break
            position = sum(length)
            count -= 1
        content = content[position:]
    return at


def _entries(index: _Frames) -> Iterator[Entry]:
    """Yield the entries of index.mrk up to the first that cannot be read. Raises UnknownFormat."""
    start = at = position = 0
    content = b""
    while (end := index.end(at)) is not None:
        content += index.content(at)  # entries of a large INSERT go on in the next frame
        while parsed := _parse_entry(content, position):
            rows, columns, header_size, position = parsed
            yield Entry(rows, columns, header_size, (start, end), content, position)
        at = end
        if position == len(content):
            start, position, content = end, 0, b""


def _parse_entry(content: bytes, start: int) -> tuple[int, list[int], int, int] | None:
    """Return an entry's rows, columns, header size, and where it ends; None if it is not all there."""
    if not (width := _varint(content, start)) or not (rows := _varint(content, width[1])):
        return None
    at = header_end = rows[1]
    columns = []
    kind = b""
    for _ in range(width[0]):
        for _ in ("name", "type"):
            if not (length := _varint(content, at)):
                return None
            at = sum(length)
            kind = content[length[1] : at]
        if at + 16 > len(content):
            return None
        column, within = struct.unpack_from("<QQ", content, at)
        if within:
            raise UnknownFormat("a column of its does not begin with a frame")
        columns.append(column)
        at += 16
    if kind != b"String":
        raise UnknownFormat(f"its last column is {kind.decode(errors='replace')}, where only String can be measured")
    return rows[0], columns, header_end - start, at


def _varint(content: bytes, at: int) -> tuple[int, int] | None:
    """Return the number at `at`, seven bits a byte, lowest first, and where it ends; None if it is not all there."""
    value = shift = 0
    for end in range(at, min(at + 10, len(content))):
        byte = content[end]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, end + 1
        shift += 7
    return None


# Frames

_HASH_SIZE = 16
_HEADER = struct.Struct("<BII")  # method, compressed size with this header, uncompressed size
_CODECS = {0x82: "lz4_raw", 0x90: "zstd"}  # the default of ClickHouse up to 26.x, and since


class _Frames:
    """A file of frames."""

    def __init__(self, content: mmap.mmap | bytes) -> None:
        self.size = len(content)
        self._content = content

    @classmethod
    @contextmanager
    def of(cls, path: Path) -> Iterator[_Frames]:
        """Open the file at `path`; one that is missing is empty."""
        if not path.exists() or not path.stat().st_size:  # which cannot be mapped
            yield cls(b"")
            return
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield cls(content)

    def end(self, at: int) -> int | None:
        """Return where the frame at `at` ends, or None if it is not whole."""
        start = at + _HASH_SIZE
        if start + _HEADER.size > self.size:
            return None
        _, size, _ = _HEADER.unpack_from(self._content, start)
        end: int = start + size
        if size < _HEADER.size or end > self.size:
            return None
        return end if _hash(self._content[start:end]) == self._content[at:start] else None

    def walk(self, start: int, stop: int) -> int | None:
        """Return where the last of the frames from `start` to `stop` begins; None if they are not just that."""
        at: int | None = start
        last = None
        while at is not None and at < stop:
            last, at = at, self.end(at)
        return last if at == stop else None

    def reach(self, at: int) -> int:
        """Return where the last of the whole frames from `at` on ends."""
        while (end := self.end(at)) is not None:
            at = end
        return at

    def content_size(self, at: int) -> int:
        """Return the bytes that the whole frame at `at` holds."""
        size: int = _HEADER.unpack_from(self._content, at + _HASH_SIZE)[2]
        return size

    def content(self, at: int) -> bytes:
        """Return what the whole frame at `at` holds. Raises UnknownFormat."""
        start = at + _HASH_SIZE
        method, size, content_size = _HEADER.unpack_from(self._content, start)
        if method not in _CODECS:
            raise UnknownFormat(f"it is compressed by a method not known here, 0x{method:02x}")
        compressed = self._content[start + _HEADER.size : start + size]
        content: bytes = pyarrow.decompress(compressed, content_size, codec=_CODECS[method], asbytes=True)
        return content

    def replaced_tail(self, at: int, content: bytes) -> bytes:
        """Return all up to the frame at `at`, and a frame in its place that holds `content`."""
        # By the same method: not every version of ClickHouse accepts several in a file.
        method = self._content[at + _HASH_SIZE]
        compressed: bytes = pyarrow.compress(content, codec=_CODECS[method], asbytes=True)
        frame = _HEADER.pack(method, _HEADER.size + len(compressed), len(content)) + compressed
        return self._content[:at] + _hash(frame) + frame


def _hash(frame: bytes) -> bytes:
    value: int = CityHash128(frame)
    return struct.pack("<QQ", value >> 64, value & (1 << 64) - 1)


# Changing a table


def cut_back(path: Path, prefix: Prefix, stamp: str) -> None:
    """Make `prefix` all that the table in `path` holds; replaced files stay, `stamp` after their names."""
    index_size = prefix.index_size
    if prefix.ends_amid_frame:
        # First, for until sizes.json is new, the table is found damaged, and is repaired the same way.
        with _Frames.of(path / INDEX) as index:
            content = index.replaced_tail(index_size, prefix.last.content[: prefix.last.content_end])
        _replace(path / INDEX, content, stamp)
        index_size = len(content)
    sizes = {"data%2Ebin": {"size": str(prefix.data_size)}, "index%2Emrk": {"size": str(index_size)}}
    _replace(path / SIZES, json.dumps({"clickhouse": sizes}, separators=(",", ":")).encode(), stamp)


def _replace(path: Path, content: bytes, stamp: str) -> None:
    if path.exists():
        path.with_name(f"{path.name}.{stamp}").hardlink_to(path)
    new = path.with_name(f"tmp_{path.name}")
    new.write_bytes(content)
    new.chmod(path.parent.stat().st_mode & 0o666)
    _give_to_owner(new)
    sync(new)
    new.replace(path)
    sync(path.parent)


def _give_to_owner(path: Path) -> None:
    """Give the file to its directory's owner, as whom ClickHouse will write to it."""
    owner = path.parent.stat()
    os.chown(path, owner.st_uid, owner.st_gid)
