"""What somebody reads who watches `python3 -m local`: a line for each block of statistics, and how it went.

In: the lines of collectors, at the end their tables. Out: lines. The blocks are the scripts' own; three of them every
few seconds leave no room on a terminal for anything else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import partial

from clickhouse_driver import Client

from config import Settings, all_symbols
from pipeline.human import many
from pipeline.messages import DEADLETTER, TICKER
from pipeline.store.both import count_rows
from pipeline.store.client import CLICKHOUSE_ERRORS, connect, explain
from pipeline.store.compact import read_table
from pipeline.store.history import history_of
from pipeline.store.source import HistoryError, moment, open_history

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
    database, since = settings.clickhouse_database, f"ts >= {moment(round(started * 1000))}"
    total, trouble, prices = 0, [], []
    client = connect(settings)

    def last_ticker(client: Client, table: str) -> str:
        ((ticker,),) = client.execute(f"SELECT argMax(m, ts) FROM {table} WHERE {since} AND mt = '{TICKER}'")
        return str(ticker)

    try:
        with open_history(settings) as history:
            for config in all_symbols(settings):
                place = database, config["table_name"]
                by_type = count_rows(client, *place, history, since).by_type
                total += (rows := sum(by_type.values()))
                if not rows:
                    trouble.append(f"{config['symbol']} stored nothing")
                elif dead := by_type.get(DEADLETTER):
                    trouble.append(f"{config['symbol']} has {many(dead, 'dead letter')}")
                ticker = read_table(client, *place, partial(last_ticker, client))
                if not ticker and history:  # the table may have been turned over a moment ago
                    with history.explained():
                        archived = database, history_of(config["table_name"])
                        ticker = read_table(history.client, *archived, partial(last_ticker, history.client))
                if ticker:
                    prices.append(f"{config['symbol']} {ticker.partition('|')[0]}")
    except HistoryError as error:
        return str(error)
    except CLICKHOUSE_ERRORS as error:
        return explain(error, settings)
    finally:
        client.disconnect()
    verdict = f"Look at this: {'; '.join(trouble)}" if trouble else "All is well"
    last = f"\nLast prices: {', '.join(prices)}" if prices else ""
    return f"{verdict}. Stored in this run: {many(total, 'record')}.{last}"
