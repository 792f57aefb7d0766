"""ch_setup.py --repair on files torn in every way that a power loss can tear them; the real engine then opens them.

A ClickHouse writes some original tables. Each case is a copy of one of them in the same directory, with its files torn.
One run of the command repairs all cases, and one ClickHouse opens them all.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import uuid
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import pyarrow
import pytest
from clickhouse_cityhash.cityhash import CityHash128
from clickhouse_driver import Client
from clickhouse_driver.errors import ServerException

from config import PROJECT, SOL_CONFIG, load_settings
from pipeline.collect.inserts import APPEND_ERRORS
from pipeline.collect.journal import Journal
from pipeline.collect.stripelog import StripeLog
from pipeline.collect.table import Table
from pipeline.store import repair
from pipeline.store.client import connect
from pipeline.store.repair import RepairError, default_directories, examine, repair_directory
from tests.stack import Stack, StoredRow, open_stack

pytestmark = pytest.mark.timeout(900)  # the first test waits for all that `lab` does

DATA, INDEX, SIZES = "data.bin", "index.mrk", "sizes.json"
LATER = (1_788_399_999_000, "t", "stored after the repair")
COLUMNS = "ts DateTime64(3), mt Enum8('t' = 1, 'd' = 2, 'dp' = 3, 'dl' = 4), m String"

dice = random.Random(20)

Snapshot = dict[str, tuple[bytes, int]]


def snapshot(path: Path) -> Snapshot:
    """Return the contents and modification times of all files in a directory."""
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.iterdir()}


def digest(number: str) -> str:
    """Return SQL for one integer of a row's number and contents; the sum over a table tells order, too."""
    return f"cityHash64(toUInt64({number}), ts, mt, m)"


def common_size(one: bytes, other: bytes) -> int:
    """Return how many bytes two files have in common at their beginning."""
    return bisect_left(range(len(one)), True, key=lambda at: one[: at + 1] != other[: at + 1])


class State(NamedTuple):
    """A table after one of its INSERTs."""

    rows: int
    data_size: int
    index_size: int


class Original:
    """A healthy table."""

    def __init__(self, lab: Lab, name: str) -> None:
        identity = str(uuid.uuid4())
        self.name, self.path, self._client = name, lab.path_of(identity), lab.client
        self.states = [State(0, 0, 0)]
        self._client.execute(f"CREATE TABLE d.{name} UUID '{identity}' ({COLUMNS}) ENGINE = StripeLog")

    def insert(self, rows: list[StoredRow]) -> None:
        self._client.execute(f"INSERT INTO d.{self.name} VALUES", rows)
        self._note(len(rows))

    def insert_blocks(self, rows: int, per_block: int) -> None:
        """Store many blocks by one INSERT, as compaction does."""
        self._client.execute(
            f"INSERT INTO d.{self.name} SELECT number, 'd', toString(cityHash64(number)) FROM numbers({rows})"
            f" SETTINGS max_block_size = {per_block}, min_insert_block_size_rows = {per_block}, max_threads = 1"
        )
        self._note(rows)

    def _note(self, rows: int) -> None:
        sizes = [(self.path / name).stat().st_size for name in (DATA, INDEX)]
        self.states.append(State(self.states[-1].rows + rows, *sizes))

    def finish(self) -> None:
        self.contents = {name: (self.path / name).read_bytes() for name in (DATA, INDEX)}
        query = f"SELECT {digest('rowNumberInAllBlocks()')} FROM d.{self.name} SETTINGS max_threads = 1"
        digests = [value for (value,) in self._client.execute(query)]
        self.digests = list(accumulate(digests, initial=0))
        """The digest of the first n rows, by n."""

    def rows_in(self, path: Path) -> int:
        """Return the rows of all INSERTs of which nothing has changed in the files in `path`."""
        intact = {}
        for name, content in self.contents.items():
            torn = (path / name).read_bytes() if (path / name).exists() else b""
            intact[name] = common_size(content, torn)
        fits = [each for each in self.states if each.data_size <= intact[DATA] and each.index_size <= intact[INDEX]]
        return fits[-1].rows


class Case:
    """A copy of an original, which is torn next."""

    def __init__(self, lab: Lab, name: str, original: Original) -> None:
        identity = str(uuid.uuid4())
        self.name, self.original, self.path = name, original, lab.path_of(identity)
        shutil.copytree(original.path, self.path)
        definition = lab.definitions / f"{original.name}.sql"
        text = definition.read_text().replace(original.path.name, identity)
        definition.with_name(f"{name.replace(' ', '%20').replace('.', '%2E')}.sql").write_text(text)

    def torn(self) -> None:
        """Note what is to be saved, now that it is torn."""
        self.rows = self.original.rows_in(self.path)
        self.before = snapshot(self.path)

    refused: bool
    """Whether ClickHouse failed to read it before it was repaired; only of those with flipped bits."""
    after: Snapshot
    """Its files, repaired."""
    saved: int
    """The rows that ClickHouse then found in it."""
    is_whole: bool
    """Whether, after another INSERT and a restart, it had the original's first rows, and then LATER, and no others."""


class Lab:
    """ClickHouse's directory with all originals and cases."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.server = stack.clickhouse()
        self.client: Client = connect(load_settings(stack.env, dotenv=None))
        self.client.execute("CREATE DATABASE d ENGINE = Atomic")
        self.cases: dict[str, Case] = {}
        # Blocks of one row and of many, some of more than one frame a column.
        self.mixed = Original(self, "mixed")
        for count in [*[1] * 40, 10_000, *[1] * 40, 37, *[1] * 20, 10_000, *[1] * 30]:
            self.mixed.insert([deal() for _ in range(count)])
        self.mixed.insert([(1_788_335_242_000, "dp", f"[{n},1]," * 150) for n in range(1_000)])
        for _ in range(10):
            self.mixed.insert([deal()])
        # Many blocks in one INSERT, and so in one frame of index.mrk.
        self.compacted = Original(self, "compacted")
        self.compacted.insert([deal()])
        self.compacted.insert_blocks(20_000, per_block=1_000)
        # So many that one frame is not enough.
        self.scattered = Original(self, "scattered")
        self.scattered.insert_blocks(9_000, per_block=1)
        self.scattered.insert([deal()])
        # So small that each of its bytes can be tried.
        self.small = Original(self, "small")
        self.small.insert([deal()])
        self.small.insert_blocks(4, per_block=2)
        self.small.insert([deal()])
        for original in (self.mixed, self.compacted, self.scattered, self.small):
            original.finish()
        self.stop()
        self.definitions = next(stack.data.glob("store/*/*/mixed.sql")).parent

    def path_of(self, identity: str) -> Path:
        return self.stack.data / "store" / identity[:3] / identity

    def add(self, name: str, original: Original, tear: Callable[[Path], object]) -> None:
        case = self.cases[name] = Case(self, name, original)
        tear(case.path)
        case.torn()

    def group(self, prefix: str) -> list[Case]:
        return [case for name, case in self.cases.items() if name.startswith(prefix)]

    def stop(self) -> None:
        assert self.server.stop() == 0, self.server.output
        self.client.disconnect()

    def start(self) -> None:
        self.server = self.stack.clickhouse()

    def try_to_read(self, cases: list[Case]) -> None:
        self.start()
        for case in cases:
            try:
                self.client.execute(f"SELECT {digest('0')} FROM d.`{case.name}`")
                case.refused = False
            except ServerException:
                case.refused = True
        self.stop()

    def repair_all(self) -> None:
        command = self.stack.run("ch_setup.py", "--repair", self.stack.data, "--yes")
        assert command.wait() == 0, command.output
        self.output = command.output
        for case in self.cases.values():
            case.after = snapshot(case.path)

    def use_all(self) -> None:
        """Count the rows of all repaired tables, write to them, restart ClickHouse, and read them."""
        self.start()
        for case in self.cases.values():
            ((case.saved,),) = self.client.execute(f"SELECT count() FROM d.`{case.name}`")
            self.client.execute(f"INSERT INTO d.`{case.name}` VALUES", [LATER])
        self.stop()
        self.start()
        number = digest("number")
        later = self.client.execute(
            f"SELECT {number} FROM numbers(30000) AS n CROSS JOIN d.`both empty` AS t ORDER BY number"
        )
        for case in self.cases.values():
            number = digest("rowNumberInAllBlocks()")
            query = f"SELECT count(), sum(toUInt128({number})) FROM d.`{case.name}` SETTINGS max_threads = 1"
            expected = (case.saved + 1, case.original.digests[case.saved] + later[case.saved][0])
            case.is_whole = self.client.execute(query) == [expected]

    def copy_table(self, original: Original, directory: Path) -> Path:
        """Make a ClickHouse directory with one table in it, and return that table's directory."""
        source = self.stack.data
        table, definition = original.path.relative_to(source), self.definitions.relative_to(source)
        (directory / "metadata").mkdir(parents=True)
        shutil.copy2(source / "metadata" / "d.sql", directory / "metadata")
        shutil.copytree(source / table, directory / table)
        (directory / definition).mkdir(parents=True)
        shutil.copy2(source / definition / f"{original.name}.sql", directory / definition)
        return directory / table


def deal() -> StoredRow:
    number = dice.randrange
    return 1_788_335_242_000 + number(10**8), "d", f"{number(84_000, 84_999)}.{number(10)}|{number(500)}|{number(1, 3)}"


# Tears

Tear = Callable[[Path], object]


def all_of(*tears: Tear) -> Tear:
    return lambda path: [tear(path) for tear in tears]


def remove(*names: str) -> Tear:
    def tear(path: Path) -> None:
        for name in names:
            (path / name).unlink()

    return tear


def write(name: str, content: bytes) -> Tear:
    return lambda path: (path / name).write_bytes(content)


def cut(name: str, size: int) -> Tear:
    """Keep the first `size` bytes of a file, or leave out its last ones if `size` is negative."""
    return lambda path: os.truncate(path / name, size if size >= 0 else (path / name).stat().st_size + size)


def garbage(*names: str) -> Tear:
    return lambda path: [(path / name).write_bytes((path / name).read_bytes() + dice.randbytes(999)) for name in names]


def zeros(name: str, start: int = 0, size: int = 1 << 40) -> Tear:
    def tear(path: Path) -> None:
        content = (path / name).read_bytes()
        end = min(start + size, len(content))
        (path / name).write_bytes(content[:start] + bytes(end - start) + content[end:])

    return tear


def flip(name: str, at: int, bit: int) -> Tear:
    def tear(path: Path) -> None:
        content = bytearray((path / name).read_bytes())
        content[at] ^= 1 << bit
        (path / name).write_bytes(content)

    return tear


def replace_text(name: str, old: bytes, new: bytes) -> Tear:
    return lambda path: (path / name).write_bytes((path / name).read_bytes().replace(old, new))


def compress_by_lz4(path: Path) -> None:
    """Write a table's files as a ClickHouse does that compresses by LZ4, as up to 26.x, instead of ZSTD."""
    data, index, moved, at = b"", b"", {}, 0
    for size, raw in frames((path / DATA).read_bytes()):
        moved[at] = len(data)
        data += lz4_frame(raw)
        at += size
    for _, raw in frames((path / INDEX).read_bytes()):
        entries = bytearray(raw)
        for column in re.finditer(rb"\x02ts\rDateTime64\(3\)|\x02mt\+Enum8\([^)]*\)|\x01m\x06String", raw):
            (place,) = struct.unpack_from("<Q", raw, column.end())
            struct.pack_into("<Q", entries, column.end(), moved[place])
        index += lz4_frame(bytes(entries))
    (path / DATA).write_bytes(data)
    (path / INDEX).write_bytes(index)
    (path / SIZES).write_bytes(sizes_json(len(data), len(index)))


def sizes_json(data: int, index: int) -> bytes:
    sizes = {"data%2Ebin": {"size": str(data)}, "index%2Emrk": {"size": str(index)}}
    return json.dumps({"clickhouse": sizes}, separators=(",", ":")).encode()


def frames(content: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(content):
        method, size, raw_size = struct.unpack_from("<BII", content, at + 16)
        assert method == 0x90  # ZSTD
        yield 16 + size, pyarrow.decompress(content[at + 25 : at + 16 + size], raw_size, codec="zstd", asbytes=True)
        at += 16 + size


def lz4_frame(raw: bytes, method: int = 0x82) -> bytes:
    packed: bytes = pyarrow.compress(raw, codec="lz4_raw", asbytes=True)
    frame = struct.pack("<BII", method, 9 + len(packed), len(raw)) + packed
    value = CityHash128(frame)
    return struct.pack("<QQ", value >> 64, value & (1 << 64) - 1) + frame


DAMAGE: dict[str, Tear] = {
    "data.bin short": cut(DATA, 100_000),
    "data.bin short by one byte": cut(DATA, -1),
    "data.bin empty": cut(DATA, 0),
    "data.bin missing": remove(DATA),
    "data.bin with zeros at the end": zeros(DATA, 98_304),
    "data.bin all zeros": zeros(DATA),
    "index.mrk short": cut(INDEX, 5_000),
    "index.mrk short by one byte": cut(INDEX, -1),
    "index.mrk empty": cut(INDEX, 0),
    "index.mrk missing": remove(INDEX),
    "index.mrk with zeros at the end": zeros(INDEX, 8_192),
    "index.mrk all zeros": zeros(INDEX),
    "both short, data.bin more": all_of(cut(DATA, 50_000), cut(INDEX, 12_000)),
    "both short, index.mrk more": all_of(cut(DATA, 130_000), cut(INDEX, 2_000)),
    "both empty": all_of(cut(DATA, 0), cut(INDEX, 0)),
    "both missing": remove(DATA, INDEX),
    "sizes.json missing": remove(SIZES),
    "sizes.json empty": cut(SIZES, 0),
    "sizes.json cut": cut(SIZES, -12),
    "sizes.json all zeros": zeros(SIZES),
    "sizes.json without index.mrk": write(SIZES, b'{"clickhouse":{"data%2Ebin":{"size":"1"}}}'),
    "sizes.json not an object": write(SIZES, b"[1]"),
    "sizes.json not text": write(SIZES, b"\xff\xfe"),
    "sizes.json ahead": replace_text(SIZES, b'"size":"', b'"size":"9'),
    "sizes.json missing, both short": all_of(remove(SIZES), cut(DATA, 90_000), cut(INDEX, 9_000)),
    "sizes.json missing, garbage after both": all_of(remove(SIZES), garbage(DATA, INDEX)),
    "sizes.json empty, data.bin short": all_of(cut(SIZES, 0), cut(DATA, 200_000)),
    "sizes.json and data.bin missing": remove(SIZES, DATA),
    "sizes.json and index.mrk missing": remove(SIZES, INDEX),
    "sizes.json empty, nothing else": all_of(cut(SIZES, 0), remove(DATA, INDEX)),
}

HARMLESS: dict[str, Tear] = {
    "untouched": all_of(),
    "garbage after data.bin": garbage(DATA),
    "garbage after index.mrk": garbage(INDEX),
    "garbage after both": garbage(DATA, INDEX),
    "sizes.json of an old version": replace_text(SIZES, b"clickhouse", b"yandex"),
    "never written to": remove(DATA, INDEX, SIZES),
    "in LZ4": compress_by_lz4,
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """All cases: torn, repaired by one run of the command, opened by ClickHouse, written to and opened again."""
    with open_stack(tmp_path_factory.mktemp("lab")) as stack:
        lab = Lab(stack)
        add_flips(lab)
        lab.try_to_read(lab.group("flip "))
        add_cases(lab)
        lab.repair_all()
        lab.use_all()
        yield lab


def add_flips(lab: Lab) -> None:
    """Flip a bit of each byte of a table's two files of frames; ClickHouse starts in spite of that."""
    for name, content in lab.small.contents.items():
        for at in range(len(content)):
            lab.add(f"flip {name} {at}", lab.small, flip(name, at, dice.randrange(8)))


def add_cases(lab: Lab) -> None:
    mixed, end = lab.mixed, lab.mixed.states[-1]
    lab.add("written to since", mixed, cut(DATA, 60_000))
    lab.start()
    lab.client.execute("INSERT INTO d.`written to since` VALUES", [LATER])
    lab.stop()
    lab.cases["written to since"].torn()
    for name, tear in {**DAMAGE, **HARMLESS}.items():
        lab.add(name, mixed, tear)
    for n in range(300):
        near = dice.choice(mixed.states)  # a byte more or less matters most where a block ends
        data = cut(DATA, dice.choice([dice.randrange(end.data_size), abs(near.data_size - dice.randrange(-60, 60))]))
        index = cut(
            INDEX, dice.choice([dice.randrange(end.index_size), abs(near.index_size - dice.randrange(-60, 60))])
        )
        lab.add(f"cut {n}", mixed, [data, index, all_of(data, index)][n % 3])
    for n in range(50):
        size = dice.choice([512, 4096, 1 << 40])
        lab.add(f"zeros {n} data.bin", mixed, zeros(DATA, dice.randrange(end.data_size), size))
        lab.add(f"zeros {n} index.mrk", mixed, zeros(INDEX, dice.randrange(end.index_size), size))
    for original in (lab.compacted, lab.scattered):
        for fifth in range(5):
            lab.add(f"{original.name} {fifth}", original, cut(DATA, original.states[-1].data_size * fifth // 5))
    lab.add("sizes.json behind", mixed, write(SIZES, sizes_json(*mixed.states[-5][1:])))
    lab.add("compacted in LZ4", lab.compacted, all_of(compress_by_lz4, cut(DATA, -30_000)))
    for at in range((lab.small.path / SIZES).stat().st_size):
        lab.add(f"sizes {at}", lab.small, flip(SIZES, at, dice.randrange(8)))


@pytest.mark.parametrize("kind", DAMAGE)
def test_it_saves_all_before_the_damage(lab: Lab, kind: str) -> None:
    case = lab.cases[kind]
    assert case.saved == case.rows
    assert case.is_whole
    assert f"d.{kind} is damaged" in lab.output


def test_it_saves_all_before_random_cuts(lab: Lab) -> None:
    cases = lab.group("cut ")
    assert [case.saved for case in cases] == [case.rows for case in cases]
    assert all(case.is_whole for case in cases)
    assert len({case.rows for case in cases}) > 50


def test_it_saves_all_before_zeros_anywhere(lab: Lab) -> None:
    cases = lab.group("zeros ")
    assert [case.saved for case in cases] == [case.rows for case in cases]
    assert all(case.is_whole for case in cases)
    assert len({case.rows for case in cases}) > 30


def test_what_clickhouse_refuses_is_found_and_what_is_repaired_is_read(lab: Lab) -> None:
    cases = lab.group("flip ")
    assert len(cases) > 1_000
    found = [f"d.{case.name} is damaged" in lab.output for case in cases]
    assert found == [case.refused for case in cases]
    assert all(case.refused for case in cases), "each byte counts"
    assert all(case.rows <= case.saved < lab.small.states[-1].rows for case in cases)
    assert all(case.is_whole for case in cases)


def test_a_bit_flipped_in_sizes_json_is_found_and_costs_no_row(lab: Lab) -> None:
    cases = lab.group("sizes ")
    assert len(cases) > 70
    assert [case.name for case in cases if f"d.{case.name} is damaged" not in lab.output] == []
    assert {case.saved for case in cases} == {lab.small.states[-1].rows}
    assert all(case.is_whole for case in cases)


def test_it_saves_what_came_before_the_damage_when_rows_came_after(lab: Lab) -> None:
    case = lab.cases["written to since"]
    assert 0 < case.saved == case.rows < lab.mixed.states[-1].rows
    assert case.is_whole


@pytest.mark.parametrize(("name", "per_block", "blocks"), [("compacted", 1_000, 20), ("scattered", 1, 9_000)])
def test_it_saves_the_whole_blocks_of_a_torn_insert(lab: Lab, name: str, per_block: int, blocks: int) -> None:
    for fifth in range(5):
        case = lab.cases[f"{name} {fifth}"]
        before = case.rows  # those of INSERTs that are whole
        saved, odd = divmod(case.saved - before, per_block)
        assert not odd
        assert abs(saved - blocks * fifth / 5) <= 1 + blocks / 500  # the blocks are nearly of one size
        assert case.is_whole


def test_it_repairs_tables_compressed_by_lz4(lab: Lab) -> None:
    case = lab.cases["compacted in LZ4"]
    assert 15_001 <= case.saved < 20_001
    index, at = case.after[INDEX][0], 0
    while at < len(index):  # not all versions of ClickHouse accept two methods in one file
        method, size = struct.unpack_from("<BI", index, at + 16)
        assert method == 0x82
        at += 16 + size
    assert case.is_whole


@pytest.mark.parametrize("kind", HARMLESS)
def test_it_does_not_touch_healthy_tables(lab: Lab, kind: str) -> None:
    case = lab.cases[kind]
    assert case.after == case.before
    assert f"d.{kind} is healthy" in lab.output
    assert case.is_whole
    assert case.saved == (0 if kind == "never written to" else lab.mixed.states[-1].rows)


def test_an_insert_that_was_never_finished_is_no_damage(lab: Lab) -> None:
    case = lab.cases["sizes.json behind"]
    assert case.after == case.before
    assert case.saved == lab.mixed.states[-5].rows
    assert case.is_whole


def test_it_keeps_the_files_that_it_replaces(lab: Lab) -> None:
    case = lab.cases["compacted 3"]
    kept = {name.rsplit(".", 1)[0]: file for name, file in case.after.items() if name not in case.before}
    assert kept == {name: case.before[name] for name in (SIZES, INDEX)}
    assert case.after[DATA] == case.before[DATA]


def test_it_changes_only_sizes_json_where_that_is_enough(lab: Lab) -> None:
    for case in lab.group("cut "):
        assert {name: case.after[name] for name in (DATA, INDEX)} == {name: case.before[name] for name in (DATA, INDEX)}


def test_it_says_what_is_wrong_and_what_will_be_lost(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    end = lab.mixed.states[-1]
    torn = lab.copy_table(lab.mixed, tmp_path)
    cut(DATA, 100_000)(torn)
    before = snapshot(torn)
    rows = lab.mixed.rows_in(torn)
    assert repair_directory(tmp_path, lambda _: False) == 1
    said = capsys.readouterr().out
    assert f"d.mixed is damaged: data.bin has 100,000 of {end.data_size:,} bytes\n" in said
    assert f"saved: {rows:,} rows in " in said
    assert f"lost: {end.rows - rows:,} rows, " in said
    assert said.endswith("Nothing was changed.\n")
    assert snapshot(torn) == before
    assert not (tmp_path / "status").exists()

    cut(INDEX, 3_000)(torn)
    zeros(DATA)(torn)
    remove(SIZES)(torn)
    assert repair_directory(tmp_path, lambda _: True) == 0
    said = capsys.readouterr().out
    assert (
        "d.mixed is damaged: sizes.json is missing, data.bin is unreadable from byte 0 on, index.mrk is unrea" in said
    )
    assert "saved: 0 rows in 0 blocks\n  lost: at least " in said


def test_a_repair_that_was_interrupted_is_finished_by_the_next(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torn = lab.copy_table(lab.compacted, tmp_path)
    cut(DATA, -30_000)(torn)
    replace = Path.replace

    def stop_before_sizes(self: Path, target: Path) -> Path:
        if target.name == SIZES:
            raise KeyboardInterrupt
        return replace(self, target)

    prefix = examine(torn).prefix
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", stop_before_sizes)
        with pytest.raises(KeyboardInterrupt):
            repair_directory(tmp_path, lambda _: True)
    assert repair_directory(tmp_path, lambda _: True) == 0
    finding = examine(torn)
    assert not finding.damage
    assert finding.prefix[:3] == prefix[:3]  # rows, blocks, bytes
    assert repair_directory(tmp_path, lambda _: False) == 0  # nothing is left to ask for


def test_new_files_belong_to_the_owner_of_the_tables_directory(lab: Lab, tmp_path: Path) -> None:
    torn = lab.copy_table(lab.compacted, tmp_path)
    cut(DATA, -30_000)(torn)
    if os.geteuid() == 0:  # else they belong to this user anyway
        os.chown(torn, 101, 102)
    torn.chmod(0o750)
    assert repair_directory(tmp_path, lambda _: True) == 0
    for name in (SIZES, INDEX):
        found, expected = (torn / name).stat(), torn.stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (expected.st_uid, expected.st_gid, 0o640)


ENTRY = struct.pack("<BB2s7sQQ", 1, 5, b"\x01n", b"\x06UInt64", 18, 0)  # a block of 5 rows of one column


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        (lz4_frame(ENTRY), "its last column is UInt64"),
        (lz4_frame(ENTRY, method=0x91), "compressed by a method not known here, 0x91"),
        (lz4_frame(ENTRY[:-1] + b"\x01"), "does not begin with a frame"),
    ],
    ids=["type", "method", "place"],
)
def test_it_leaves_alone_what_it_does_not_know(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str], index: bytes, reason: str
) -> None:
    table = lab.copy_table(lab.mixed, tmp_path)
    write(INDEX, index)(table)
    before = snapshot(table)
    assert repair_directory(tmp_path, lambda _: True) == 1
    assert snapshot(table) == before
    said = capsys.readouterr().out
    assert "d.mixed is left alone: " in said
    assert reason in said


def test_it_looks_at_no_other_engine(lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = lab.copy_table(lab.mixed, tmp_path)
    remove(SIZES)(table)
    replace_text("mixed.sql", b"ENGINE = StripeLog", b"ENGINE = TinyLog")(
        next(tmp_path.glob("store/*/*/mixed.sql")).parent
    )
    assert repair_directory(tmp_path, lambda _: True) == 0
    assert "d.mixed" not in capsys.readouterr().out


# The command


def command(stack: Stack, *arguments: object, said: str = "", **env: str) -> tuple[int, str, str]:
    """Run ch_setup.py --repair with something typed into it; return its exit code, stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "ch_setup.py", "--repair", *map(str, arguments)],
        cwd=PROJECT,
        env=stack.env | env,
        input=said,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_it_refuses_a_directory_that_is_in_use(lab: Lab) -> None:
    assert command(lab.stack, lab.stack.data) == (2, "", f"{lab.stack.data} is in use: stop ClickHouse first\n")


def test_clickhouse_cannot_start_while_it_works(lab: Lab, tmp_path: Path) -> None:
    remove(SIZES)(lab.copy_table(lab.mixed, tmp_path))

    def try_to_start(_: str) -> bool:
        server = lab.stack.run("-m", "local.clickhouse", "--port", 0, "--data", tmp_path)
        assert server.wait() == 2
        assert "Cannot lock file" in server.output
        return False

    assert repair_directory(tmp_path, try_to_start) == 1


def test_it_refuses_what_is_no_data_directory(stack: Stack) -> None:
    line = f"{stack.directory} is not a data directory of ClickHouse: it has no metadata/ and store/\n"
    assert command(stack, stack.directory) == (2, "", line)
    assert list(stack.directory.iterdir()) == []


def test_it_says_what_to_install(stack: Stack) -> None:
    (stack.directory / "clickhouse_cityhash.py").write_text("raise ModuleNotFoundError(name='clickhouse_cityhash')")
    line = "--repair needs clickhouse_cityhash: run ./setup.sh\n"
    assert command(stack, stack.directory, PYTHONPATH=str(stack.directory)) == (2, "", line)


def test_what_deployment_md_has_docker_do_first_repairs(lab: Lab, tmp_path: Path) -> None:
    torn = lab.copy_table(lab.mixed, tmp_path)
    remove(SIZES)(torn)
    text = (PROJECT / "DEPLOYMENT.md").read_text()
    (options,) = re.findall(r"^ExecStartPre=-\S+/venv/bin/python \S+/ch_setup\.py (.+)$", text, re.MULTILINE)
    volume = "/var/lib/docker/volumes/mexc-pipeline_clickhouse_data/_data"
    arguments = [str(tmp_path) if each == volume else each for each in options.split()]
    assert str(tmp_path) in arguments
    done = subprocess.run(
        [sys.executable, PROJECT / "ch_setup.py", *arguments],
        cwd="/",
        env=lab.stack.env,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert (torn / SIZES).exists()


def test_it_asks_before_it_changes_anything(lab: Lab, tmp_path: Path) -> None:
    torn = lab.copy_table(lab.mixed, tmp_path)
    remove(SIZES)(torn)
    for typed, code, left in (("", 1, False), ("no\n", 1, False), ("yes\n", 0, True)):
        assert command(lab.stack, tmp_path, said=typed)[0] == code
        assert (torn / SIZES).exists() == left
    assert command(lab.stack, tmp_path)[0] == 0  # nothing to ask


def test_without_a_directory_it_takes_the_local_stacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "PROJECT", tmp_path)
    with pytest.raises(RepairError, match=r"--repair DIR$"):
        default_directories()
    for name in ("live/clickhouse", "simulated/clickhouse", "simulated/journal"):
        (tmp_path / "local-data" / name).mkdir(parents=True)
    assert default_directories() == [tmp_path / "local-data" / name / "clickhouse" for name in ("live", "simulated")]


# What a power loss amid ch_setup.py leaves


@pytest.mark.parametrize("was_deleted", [False, True], ids=["made", "deleted"])
def test_a_table_that_was_just_being_made_or_deleted_can_be_made_again(stack: Stack, was_deleted: bool) -> None:
    server = stack.clickhouse()
    stack.setup()
    stack.query("INSERT INTO mexc_data.sol VALUES (now(), 'd', '1|2|1')")
    stack.query("INSERT INTO mexc_data.eth VALUES (now(), 'd', '3|4|1')")
    server.stop()
    identity = SOL_CONFIG["uuid"]
    path = stack.data / "store" / identity[:3] / identity
    (statement,) = stack.data.glob("store/*/*/sol.sql")
    if was_deleted:
        dropped = stack.data / "metadata_dropped"
        dropped.mkdir(exist_ok=True)
        statement.rename(dropped / f"mexc_data.sol.{identity}.sql")
    else:
        statement.unlink()
        shutil.rmtree(path)
        path.mkdir()
    server = stack.clickhouse()
    refused = stack.run("ch_setup.py")
    assert refused.wait() == 1
    assert refused.lines[-1] == (
        f"mexc_data.sol cannot be created, for its directory is there already, store/{identity[:3]}/{identity}:"
        " a power loss has left it. Stop ClickHouse and run ch_setup.py --repair"
    )
    server.stop()
    assert command(stack, stack.data, said="no\n")[0] == 1
    assert path.exists()
    code, said, _ = command(stack, stack.data, "--yes")
    assert code == 0
    assert f"store/{identity[:3]}/{identity} is left of a table that was being deleted or made\n" in said
    stack.clickhouse()
    stack.setup()
    assert (stack.count("sol"), stack.count("eth")) == (0, 1)


def test_a_directory_with_rows_that_no_table_has_is_left_alone(stack: Stack) -> None:
    server = stack.clickhouse()
    stack.setup()
    stack.query("INSERT INTO mexc_data.sol VALUES (now(), 'd', '1|2|1')")
    server.stop()
    (statement,) = stack.data.glob("store/*/*/sol.sql")
    statement.unlink()
    assert command(stack, stack.data)[0] == 0
    identity = SOL_CONFIG["uuid"]
    assert (stack.data / "store" / identity[:3] / identity / DATA).stat().st_size > 0


# With a collector's journal


def test_the_journal_refills_the_tail(running: Stack) -> None:
    said: list[str] = []
    rows = [deal() for _ in range(3_000)]
    journal = Journal(running.directory / "btc.db", 1 << 30)
    stripelog = StripeLog(load_settings(running.env, dotenv=None), "btc", said.append)
    table = Table(journal.position("btc"), stripelog, said.append, 10_000)

    def store(some: list[StoredRow]) -> None:
        journal.append([(*row, 0, 0) for row in some])
        table.append_pending()

    store(rows[:2_000])
    for row in rows[2_000:2_300]:
        store([row])
    running.processes[0].stop(signal.SIGKILL)
    torn = next(running.data.glob("store/b7c/*"))
    cut(DATA, -10_000)(torn)
    code, output, _ = command(running, running.data, said="yes\n")
    assert code == 0, output
    assert (running.data / "status").exists()  # which the killed ClickHouse left

    running.clickhouse()
    saved = running.count()
    assert 2_000 < saved < 2_300
    journal.append([(*row, 0, 0) for row in rows[2_300:]])
    with pytest.raises(APPEND_ERRORS):  # the connection is that to the killed ClickHouse
        table.append_pending()
    while journal.waiting:
        table.append_pending()
    assert said == [f"mexc_data.btc lost its last {2_300 - saved} rows: sending them again"]
    assert running.rows() == rows
    stripelog.close()
    journal.close()
