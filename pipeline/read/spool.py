"""A day's rows in the order of time, in memory that does not depend on how many they are.

In: tables of rows, in the order they are stored in. Out: the same rows, oldest first; those of one time in the order
they came in. Until all are there they wait on the disk, in a file without a name, which is gone with the process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_HOUR_US = 3_600_000_000


def local_us(rows: pa.Table) -> npt.NDArray[np.int64]:
    """Return when rows were received, in microseconds since the epoch; MEXC's time for each where that is not known.

    A history knows it of what it was fed with, and not of what `ch_setup.py --history` has copied.
    """
    times = rows["ts"].cast(pa.timestamp("us", tz="UTC"))
    if "received" in rows.column_names:
        times = pc.coalesce(rows["received"], times)
    found: npt.NDArray[np.int64] = times.cast(pa.int64()).to_numpy()
    return found


def in_order(rows: pa.Table) -> pa.Table:
    """Return rows by the time they were received at; those of one time as they are."""
    times = local_us(rows)
    if (times[1:] >= times[:-1]).all():
        return rows
    return rows.take(np.argsort(times, kind="stable"))


class Spool:
    """Rows on the disk, to be had by the hour. Raises OSError: the disk is full, or fails."""

    def __init__(self, directory: Path) -> None:
        """Keep them in a file of this directory's disk."""
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 (closed by `close`)
        self._pieces: dict[int, list[tuple[int, int]]] = {}

    def add(self, rows: pa.Table) -> None:
        """Take rows."""
        hours = local_us(rows) // _HOUR_US
        for hour in np.unique(hours).tolist():
            sink = pa.BufferOutputStream()
            part = rows.filter(pa.array(hours == hour))
            with pa.ipc.new_stream(sink, part.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
                writer.write_table(part.combine_chunks())
            piece = sink.getvalue()
            self._pieces.setdefault(hour, []).append((self._file.tell(), piece.size))
            self._file.write(piece)

    def __iter__(self) -> Iterator[pa.Table]:
        """Yield the rows of each hour that has any."""
        for _, pieces in sorted(self._pieces.items()):
            tables = []
            for start, size in pieces:
                self._file.seek(start)
                tables.append(pa.ipc.open_stream(self._file.read(size)).read_all())
            yield in_order(pa.concat_tables(tables))

    def close(self) -> None:
        """Forget all."""
        self._file.close()
