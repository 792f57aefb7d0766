"""Candles where freqtrade looks for them: DIR/futures/BTC_USDT_USDT-1m-futures.feather.

In: the candles of a symbol, by day, as `pipeline.read.export` writes them. Out: one file of all days, as freqtrade
wants them. Promise: it is there as a whole or not at all, and has each candle of the days' files, which stay in
DIR/.export, so that the next export reads only the days that are new or have grown.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import replace
from datetime import date
from pathlib import Path

import pyarrow as pa

from config import Settings, SymbolConfig
from pipeline.files import sync
from pipeline.human import human_size, many
from pipeline.read import ohlcv
from pipeline.read.export import Job, Result, export, say, using

_FORMAT = "arrow"  # of the days' files; feather is another name of it


def export_for_freqtrade(
    settings: Settings,
    config: SymbolConfig,
    job: Job,
    out: Path,
    result: Result,
    *,
    start: date | None = None,
    end: date | None = None,
) -> None:
    """Export candles into freqtrade's directory of data, `out`, such as user_data/data/mexc. See `export`."""
    aside, of_days = out / ".export" / "freqtrade", Result()
    job = replace(job, format=_FORMAT, is_ohlcv=True)
    try:
        export(settings, config, job, aside, of_days, start=start, end=end, quiet=True)
    finally:
        result.already_there += of_days.already_there
        result.undecoded += of_days.undecoded
        result.filled += of_days.filled
        result.kept += of_days.kept
    pair = f"{config['symbol']}_{config['symbol'].rpartition('_')[2]}"
    target = out / "futures" / f"{pair}-{job.interval}-futures.feather"
    days = aside / f"type={job.name}" / f"symbol={config['symbol']}"
    _join(sorted(days.glob(f"day=*/part-0.{job.ending}")), target, days / "joined.json", result)


def _join(files: list[Path], target: Path, record: Path, result: Result) -> None:
    """Make one file of `files`, unless the one that is there was made of them: `record` says what that was made of."""
    with using(target):
        made_of = {str(path.parent.name): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
        with suppress(OSError, ValueError):
            if json.loads(record.read_text()) == {"of": made_of, "bytes": target.stat().st_size}:
                return
        if not files:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        new = target.with_suffix(".tmp")
        rows = 0
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        try:
            with new.open("wb") as file:
                with pa.ipc.new_file(file, ohlcv.SCHEMA, options=options) as writer:
                    for path in files:
                        table = pa.ipc.open_file(path.read_bytes()).read_all()
                        writer.write_table(table)
                        rows += len(table)
                file.flush()
                os.fsync(file.fileno())
            record.unlink(missing_ok=True)  # which must not speak for the new file
            new.replace(target)
        finally:
            new.unlink(missing_ok=True)
        sync(target.parent)
        size = target.stat().st_size
        record.write_text(json.dumps({"of": made_of, "bytes": size}))
    result.files += 1
    result.rows += rows
    result.bytes += size
    say(f"{target}: {many(rows, 'row')}, {human_size(size)}")
