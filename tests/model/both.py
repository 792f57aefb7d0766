"""The small world with HISTORY=1: the same journal feeds a history, too, by the real `HistoryLog`.

`ch_setup.py --history` and turning over are the real code as well; what they say to ClickHouse, `Server` answers.
Beyond what can happen to the table, the history is sent to, loses a row, is written to, made anew, copied into, and the
table turned over, killed half-way or not. What a reader has of both together, and the history by itself once all was
copied, has each row once and in order, like the table in the world without.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from config import Settings
from pipeline.collect.errors import TableMissing, TableUnusable
from pipeline.collect.historylog import HistoryLog
from pipeline.collect.journal import HISTORY
from pipeline.collect.table import Table
from pipeline.store import copying
from pipeline.store.compact import CompactionError, Progress, _Fingerprint
from pipeline.store.history import BEGINS
from pipeline.store.source import History, HistoryError, Source
from pipeline.store.turnover import _TurnOver
from tests.model.server import KilledError, Server
from tests.model.world import FOREIGN, MemoryTable, Unreachable, World
from tests.pieces import pieces

SETTINGS = replace(Settings(), history=True)


FED = ("append", "append", "send", "fill")
"""Two rows are in both: where most of what can happen to a history begins."""

FORGOTTEN = (
    *(*FED, "sync", *FED),
    *("turn_over_killed_before_it_is_away", "lose_power_on_both"),
    *("append", "append", "append", "append"),
)
"""The history has two rows that neither the table nor the journal has, and it was noted that the table has them."""


RESET = (
    *("send_and_lose_the_answer", "append", "reset_unnoticed", "make_the_history_anew"),
    *("send_and_lose_the_answer", "send", "append", "fill"),
)
"""Both were made anew; the first row is in the new table only, and the history begins after that."""


OUTDATED = (
    *("send_and_lose_the_answer", "append", "reset_unnoticed", "send_and_lose_the_answer", "send"),
    *("append", "fill", "lose_power_and_all_of_the_table"),
)
"""Of a table that was made anew it was noted that the history lacks its first row; now another one will stand there."""


BEFORE_IT_IS_AWAY = 3


class HistoryInserts:
    """The connection to the history, in place of pipeline.collect.inserts.Inserts."""

    def __init__(self, server: Server) -> None:
        self.client = server
        self.fate = "stored"

    def insert(self, columns: str, rows: list[Any], settings: dict[str, Any]) -> None:
        fate, self.fate = self.fate, "stored"
        if fate != "refused":
            self.client.execute(f"INSERT INTO mexc_data.btc_history ({columns}) VALUES", rows, settings)
        if fate != "stored":
            raise Unreachable

    def settle(self) -> None:
        """Nothing is ever under way."""


class TurningOver(_TurnOver):
    """Turning over by statements that the server takes, with nobody else there."""

    def __init__(self, server: Server) -> None:
        super().__init__(SETTINGS, "btc")
        self._client = server

    def _run(self, sql: str, params: dict[str, str] | None = None, settings: dict[str, Any] | None = None) -> None:
        if not sql.startswith("SYSTEM"):
            self._client.execute(sql, params, settings)

    def _read(self, sql: str) -> Generator[Progress, None, Any]:
        yield Progress("", 0.5)
        return self._client.execute(sql.partition(" SETTINGS ")[0])

    def _fingerprint(
        self, table: str, text: str, where: str = ""
    ) -> Generator[Progress, None, tuple[int, _Fingerprint]]:
        yield Progress(text, 0.5)
        rows = self._client.execute(f"SELECT ts, mt, m FROM {table} ORDER BY rowid")
        return 1, _Fingerprint(len(rows), 0, hash(tuple(rows)))

    def _look(self, table: str) -> tuple[int, int, str]:
        ((rows,),) = self._client.execute(f"SELECT count() FROM {table}")
        return rows, 0, ""

    def _wait_for_readers(self) -> None:
        """There are none."""

    def _wait_for_others(self, timeout: float | None = None) -> None:
        """There are none."""

    def _wait_for_idleness(self) -> None:
        """There are none."""


class TurnedTable(MemoryTable):
    """The StripeLog table; while it is turned over or copied from, the server has it."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server = server
        self.is_away = False

    def state(self) -> tuple[int, str]:
        self.bring_back()
        return super().state()

    def insert(self, rows: list[Any]) -> None:
        if self.is_away:
            raise TableMissing
        super().insert(rows)

    def comment(self) -> str:
        return f"token {self.token}+{len(self.gone)}" if self.gone else f"token {self.token}"

    def give(self) -> None:
        """Have the server know it as it is."""
        self.bring_back()
        db = self.server.db
        db.execute("DELETE FROM mexc_data.btc")
        db.executemany("INSERT INTO mexc_data.btc VALUES (0, 'd', ?)", [(str(number),) for number in self.content])
        db.execute("UPDATE system.tables SET comment = ? WHERE name = 'btc'", (self.comment(),))

    def turn_over(self, kill_at: int) -> None:
        self.give()
        self.server.kill_at = kill_at
        try:
            for _ in TurningOver(self.server).run(SETTINGS, self.server):
                pass
        except CompactionError:
            pass
        except KilledError:
            self.is_away = True
        self.server.kill_at = 0
        if not self.is_away:
            self._take_back()

    def bring_back(self) -> None:
        """Finish what was killed, as whoever comes next does."""
        if self.is_away:
            self.is_away = False
            for _ in TurningOver(self.server).resume():
                pass
            self._take_back()

    def _take_back(self) -> None:
        db = self.server.db
        stays = [int(m) for (m,) in db.execute("SELECT m FROM mexc_data.btc ORDER BY rowid")]
        gone = self.content[: len(self.content) - len(stays)]
        there = {int(m) for (m,) in db.execute("SELECT m FROM mexc_data.btc_history")}
        assert {*gone} <= there, f"gone and not in the history: {gone}"
        self.gone += gone
        self.content = stays
        ((comment,),) = db.execute("SELECT comment FROM system.tables WHERE name = 'btc'").fetchall()
        assert comment == self.comment()


class WorldWithHistory(World):
    """One collector's journal, table and history."""

    OF_HISTORY = (
        "lose_power_on_both",
        "lose_power_and_all_of_the_table",
        "lose_power_and_a_row_of_the_history",
        "make_room",
        "fill",
        "fill_and_lose_the_answer",
        "fill_and_be_refused",
        "history_loses_a_row",
        "somebody_writes_to_the_history",
        "make_the_history_anew",
        "copy_into_the_history",
        "turn_over",
        "turn_over_killed_before_it_is_away",
        "turn_over_killed_while_it_is_away",
        "turn_over_killed_once_it_is_empty",
    )
    ACTIONS = (*World.ACTIONS, *OF_HISTORY)

    def __init__(self, directory: Path) -> None:
        self.server = Server()
        self._histories = 0
        self._seqs: dict[int, int] = {}
        self._have_both_forgotten = False
        super().__init__(directory)
        for name in ("connect", "connect_history"):
            self._patch.setattr(copying, name, lambda *_, **__: self.server)

    def new_table(self) -> MemoryTable:
        return TurnedTable(self.server)

    # What happens

    def append(self) -> None:
        super().append()
        self._seqs[self._journal.newest] = self._newest

    def lose_power_on_both(self) -> None:
        """The table loses what the journal forgets, and one row more."""
        self._table_of_both.bring_back()
        self._have_both_forgotten = True
        self.lose_power()
        newest = self._journal._db.execute("SELECT ifnull(max(seq), 0) FROM rows").fetchone()[0]
        kept = self._seqs.get(newest, 0)
        while self.table.content and self.table.content[-1] > kept:
            self._strays.add(self.table.content.pop())  # the history may have it, before whichever of the next ones
        self.table_loses_a_row()
        self._table.doubt()

    def lose_power_and_all_of_the_table(self) -> None:
        """It was made anew just now; what the journal has of it comes again."""
        self.lose_power_on_both()
        self._excused |= set(self.table.content) - self._can_come_again()
        if self._position.token != f"token {self.table.token}":
            self._excused |= self._not_waiting()  # nothing is left that tells what it had
        self.table.content = []
        self._has_copy = False

    def lose_power_and_a_row_of_the_history(self) -> None:
        """The newest one that the journal still knows of: those that it forgot were sent are there."""
        self._table_of_both.bring_back()
        self.lose_power()
        newest = self._history_position.stand().last_seq
        self._excuse(f"SELECT m FROM mexc_data.btc_history WHERE n = {newest}")
        self.server.db.execute("DELETE FROM mexc_data.btc_history WHERE n = ?", (newest,))

    def make_room(self) -> None:
        """The journal is full, and makes room by rows that only the history lacks."""
        if self._is_forgetting_seen() and self._not_waiting() <= {
            *self.table.gone,
            *self.table.content,
            *self._excused,
        }:
            self._journal._delete_spare()

    def fill(self) -> None:
        """What waits for the history is sent, two rows an INSERT, and all goes well."""
        self._fill("stored")

    def fill_and_lose_the_answer(self) -> None:
        """The history stores a block, and nobody hears of it."""
        self._fill("unheard")

    def fill_and_be_refused(self) -> None:
        """The history does not store a block, and nobody knows."""
        self._fill("refused")

    def history_loses_a_row(self) -> None:
        """Somebody deletes the newest one that it was fed, or a disk does; it is asked before the process ends."""
        if not self._history.in_step or self._history_position.in_doubt:
            return
        self._table_of_both.bring_back()
        newest = self._history_position.stand().last_seq
        self._excuse(f"SELECT m FROM mexc_data.btc_history WHERE n = {newest}")
        self.server.db.execute("DELETE FROM mexc_data.btc_history WHERE n = ?", (newest,))
        self._history.doubt()
        self._fill("stored")

    def somebody_writes_to_the_history(self) -> None:
        """A row of somebody else, by its number between those of two runs of the collector."""
        row = (self._journal._first - 1, 0, 0, 0, "d", 0, str(FOREIGN))
        self.server.db.execute("INSERT INTO mexc_data.btc_history VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        self._history.doubt()

    def make_the_history_anew(self) -> None:
        """Somebody drops it, and ch_setup.py makes it again; rows that only it had are gone."""
        self._table_of_both.bring_back()
        self._excuse("SELECT m FROM mexc_data.btc_history")
        self._histories += 1
        self.server.db.execute("DELETE FROM mexc_data.btc_history")
        self.server.make("btc_history", "MergeTree", f"history {self._histories}")
        self.server.blocks.clear()

    def copy_into_the_history(self) -> None:
        """ch_setup.py --history --yes: nobody but the history has what table and journal forgot."""
        self._table_of_both.give()
        with suppress(CompactionError):
            for _ in copying.copy(SETTINGS, "btc", keep_others=True):
                pass

    def turn_over(self) -> None:
        """The table is emptied of what the history has."""
        self._turn_over()

    def turn_over_killed_before_it_is_away(self) -> None:
        """And with what is to stay copied, it ends."""
        self._turn_over(kill_at=BEFORE_IT_IS_AWAY)

    def turn_over_killed_while_it_is_away(self) -> None:
        """And before the copy of what is to stay is called whole."""
        self._turn_over(kill_at=6)

    def turn_over_killed_once_it_is_empty(self) -> None:
        """And before what is to stay is put back."""
        self._turn_over(kill_at=8)

    def table_loses_a_row(self) -> None:
        """One that the journal has: else the numbers of all that come are others, and nobody vouches for the order."""
        self._table_of_both.bring_back()
        if self.table.content and self.table.content[-1] in self._can_come_again():
            super().table_loses_a_row()

    def reset_unnoticed(self) -> None:
        self._table_of_both.bring_back()
        super().reset_unnoticed()

    def somebody_writes(self) -> None:
        self._table_of_both.bring_back()
        if self._is_forgetting_seen():
            super().somebody_writes()

    # What has to be true

    def check(self) -> None:
        super().check()
        self._fill("stored")
        if self._is_readable():
            self._compare(self._read())
        self._table.doubt()  # for a table or a history that was made anew, which was not noticed yet
        self._send("stored")
        self._history.doubt()
        self._fill("stored")
        if self._is_readable():
            self._compare(self._both())
            self._compare(self._read())
        self.copy_into_the_history()
        self._compare(self._both())
        self._compare(self._read())

    def key(self) -> object:
        here, log = self._history_position, self._log
        begins = self.server.db.execute(f"SELECT token, history, first, rows, after, n FROM mexc_data.{BEGINS}")
        rows = self.server.db.execute("SELECT n, m FROM mexc_data.btc_history ORDER BY n")
        return (
            super().key(),
            self._histories,
            self._table_of_both.is_away,
            self._have_both_forgotten,
            tuple((*each[:4], self._named(each[4]), self._named(each[5])) for each in begins),
            tuple((self._named(n), m) for n, m in rows),
            tuple(sorted(self.server.blocks)),
            here.token,
            here.rows - here._number,
            *(self._number_at(number) for number in (here._number, here._base, here._sent, here._known_to)),
            here.is_open,
            here.has_gap,
            self._history._in_flight,
            self._history._is_new,
            log._together,
            log._strangers,
            tuple(self._named(n) for n in sorted(log._there)),
        )

    # How it is done

    def _is_forgetting_seen(self) -> bool:
        """Whether what came in the place of rows that both forgot was told by its numbers; other changes come later."""
        self._have_both_forgotten &= not self._position.is_open or self._log.has_parted
        return not self._have_both_forgotten

    def _turn_over(self, kill_at: int = 0) -> None:
        """Turn over a table that its collector knows, with rows older than a second; no copy is from before."""
        if not self._table.in_step:
            return
        if kill_at != BEFORE_IT_IS_AWAY:
            self.sync()
        self._has_copy = False
        self._table_of_both.turn_over(kill_at)
        self._table.doubt()

    def _reopen(self, files: Path) -> None:
        super()._reopen(files)
        kept = {int(m) for (m,) in self._journal._db.execute("SELECT m FROM rows")}
        here = {int(m) for (m,) in self.server.db.execute("SELECT m FROM mexc_data.btc_history")}
        self._strays |= (
            here - kept - {*self.table.gone, *self.table.content}
        )  # nobody knows before which rows they came

    def _open(self) -> None:
        super()._open()
        self._history_position = self._journal.position("btc_history", HISTORY, beside=self._position)
        self._log = HistoryLog(
            SETTINGS, "btc", self._history_position, self._position, self._table_of_both, self.said.append
        )
        self._inserts = HistoryInserts(self.server)
        self._log.inserts = self._inserts  # type: ignore[assignment]
        self._history = Table(self._history_position, self._log, self.said.append, max_rows=2)

    def _fill(self, fate: str) -> None:
        """Fill the history until nothing waits; the first INSERT has the given fate."""
        self._inserts.fate = fate
        for _ in range(1000):
            if self._log.has_parted:
                self._history.doubt()
            if self._history.in_step and not self._history_position.waiting:
                break
            try:
                self._history.append_pending()
            except (Unreachable, TableUnusable):
                return
        else:
            raise AssertionError("the history is never in step")
        self._inserts.fate = "stored"

    def _read(self) -> list[int]:
        """Return the rows as a reader has them: of the history alone where that is whole, else of the table."""
        if self._source() is None:
            return self.table.content
        found = self.server.db.execute("SELECT m FROM mexc_data.btc_history ORDER BY n")
        return [int(m) for (m,) in found]

    def _is_readable(self) -> bool:
        """Whether a reader is not told to run ch_setup.py --history first: rows are in the history only, amid a gap."""
        try:
            self._source()
        except HistoryError:
            return False
        return True

    def _source(self) -> Source | None:
        self._table_of_both.give()
        history = History(SETTINGS)
        history.client = self.server
        return history.source_of(self.server, "mexc_data", "btc")

    def _both(self) -> list[int]:
        """Return the rows that table and history have together."""
        found: list[int] = []
        for in_history, first, end in pieces(self.server, "mexc_data", "btc", self._table_of_both.comment()):
            if in_history:
                query = "SELECT m FROM mexc_data.btc_history WHERE n >= ? AND n < ? ORDER BY n"
                found += [int(m) for (m,) in self.server.db.execute(query, (first, end))]
            else:
                found += self.table.content[first:end]
        return found

    def _excuse(self, query: str) -> None:
        """Rows of a history that are about to be lost, and are in no other place."""
        lost = {int(m) for (m,) in self.server.db.execute(query)}
        self._excused |= lost & set(self.table.gone)

    @property
    def _table_of_both(self) -> TurnedTable:
        assert isinstance(self.table, TurnedTable)
        return self.table

    def _named(self, n: int) -> object:
        """Return an n by the rows around it, for seqs are times."""
        below = max((seq for seq in self._seqs if seq <= n), default=0)
        above = min((seq for seq in self._seqs if seq > n), default=0)
        return self._seqs.get(below), min(9, n - below), self._seqs.get(above), min(9, max(0, above - n))
