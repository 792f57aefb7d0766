"""What somebody reads who watches `python3 -m local`: a line for each block of statistics, and how it went.

In: the lines of collectors, at the end their tables. Out: lines. The blocks are the scripts' own; three of them every
few seconds leave no room on a terminal for anything else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from config import Settings, all_symbols
from pipeline.human import many
from pipeline.messages import DEADLETTER, TICKER
from pipeline.store.client import CLICKHOUSE_ERRORS, connect, explain

_RULE = "=" * 50
_LINE = re.compile(r"(?P<before>(?:\S+Z )?(?P<name>\S+ +\| )?)(?P<said>.*)", re.DOTALL)  # LOG_TIME, a fleet's names
_BLOCK = re.compile(rf"{_RULE}\n\S+ STATISTICS \(Last (?P<seconds>\d+)s\)\n{_RULE}\n(?P<items>.*)\n{_RULE}", re.DOTALL)


def summed_up(lines: Iterable[str]) -> Iterator[str]:
    """Yield a collector's lines, or those of a fleet, with each block as one line; none has a line feed."""
    begun: dict[str, list[tuple[str, str]]] = {}  # for each name: the lines of its block, and what they say
    for line in lines:
        parts = _LINE.fullmatch(line)
        assert parts
        name, said = parts["name"] or "", parts["said"]
        if name not in begun and said != _RULE:
            yield line
            continue
        block = begun.setdefault(name, [])
        block.append((line, said))
        if found := _BLOCK.fullmatch("\n".join(said for _, said in block)):
            yield parts["before"] + _one_line(found)
            del begun[name]
    for block in begun.values():  # whose collector was killed
        yield from (line for line, _ in block)


def _one_line(block: re.Match[str]) -> str:
    items = dict(item.split(": ", 1) for item in block["items"].split("\n"))
    total, rate = items.pop("Total Records Appended"), items.pop("Rate")
    types = [
        f"{name.removesuffix(' Messages').lower()} {value.split()[0]}" for name, value in items.items() if "→" in value
    ]
    rest = [f"; {name}: {value}" for name, value in items.items() if "→" not in value and value != "0"]
    return f"{total} records in {block['seconds']} s ({rate}): {', '.join(types)}{''.join(rest)}"


def closing(settings: Settings, started: float) -> str:
    """Return how a run went that began at `started`, seconds since the epoch, and the last prices.

    ClickHouse is asked; where it does not answer, that is what is said.
    """
    database = settings.clickhouse_database
    of_run = {"since": datetime.fromtimestamp(started, UTC)}
    total, trouble, prices = 0, [], []
    client = connect(settings)
    try:
        for config in all_symbols(settings):
            ((rows, dead, price),) = client.execute(
                f"SELECT count(), countIf(mt = '{DEADLETTER}'), argMaxIf(m, ts, mt = '{TICKER}')"
                f" FROM {database}.{config['table_name']} WHERE ts >= %(since)s",
                of_run,
            )
            total += rows
            if not rows:
                trouble.append(f"{config['symbol']} stored nothing")
            elif dead:
                trouble.append(f"{config['symbol']} has {many(dead, 'dead letter')}")
            if price:
                prices.append(f"{config['symbol']} {price.partition('|')[0]}")
    except CLICKHOUSE_ERRORS as error:
        return explain(error, settings)
    finally:
        client.disconnect()
    verdict = f"Look at this: {'; '.join(trouble)}" if trouble else "All is well"
    last = f"\nLast prices: {', '.join(prices)}" if prices else ""
    return f"{verdict}. Stored in this run: {many(total, 'record')}.{last}"
