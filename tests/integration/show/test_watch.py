"""verif.py --watch as a user sees it: on a terminal of 80 by 24, on one that can do nothing, and in a pipe."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console

from config import ALL_CONFIGS, PROJECT, all_symbols, load_settings
from local.market import CONTRACTS
from pipeline.human import human_size
from pipeline.show import watch
from pipeline.status import Status
from pipeline.store import storage
from tests.stack import PATIENCE, Stack, eventually, free_port, open_stack

COLUMNS, LINES = 80, 24
TO_SCREEN, FROM_SCREEN, SHOW_CURSOR = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h"
ESCAPE = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|[()].)")


class Terminal:
    """A terminal in which verif.py --watch runs."""

    def __init__(
        self, stack: Stack, term: str = "xterm-256color", columns: int = COLUMNS, lines: int = LINES, **env: object
    ) -> None:
        self._master, slave = pty.openpty()
        self._slave = slave
        self.resize(columns, lines)
        self._mode = termios.tcgetattr(slave)
        given = {name: str(value) for name, value in env.items()}
        self._process = subprocess.Popen(
            # As a shell would: a session of its own, of which this is the controlling terminal.
            ["setsid", "--ctty", sys.executable, "verif.py", "--watch", "0.2"],
            cwd=PROJECT,
            env={**stack.env, "TERM": term, "LANG": "C.UTF-8", "PYTHONIOENCODING": "utf-8", **given},
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        self.output = ""
        threading.Thread(target=self._read, daemon=True).start()

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def screens(self) -> list[list[str]]:
        """Return the lines of each refresh so far but the last one, which may be half there."""
        return [ESCAPE.sub("", screen).splitlines() for screen in self.output.split("\x1b[H")[1:-1]]

    def wait_for(self, pattern: str) -> str:
        """Wait for a refresh in which the pattern is found; return it."""
        begin = len(self.screens())

        def found() -> bool:
            assert self._process.poll() is None, self.output
            return bool(re.search(pattern, self.screen(begin)))

        try:
            eventually(found, pattern)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.screen(0)}") from None
        return self.screen(begin)

    def screen(self, begin: int) -> str:
        """Return the newest refresh, if there were some after the first `begin`."""
        return "\n".join(line.rstrip() for line in (self.screens()[begin:] or [[]])[-1])

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait for the end; return the exit code. The terminal has to be as it was."""
        code = self._process.wait(PATIENCE)
        assert termios.tcgetattr(self._slave) == self._mode
        return code

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._slave)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # the other side was closed
                os.close(self._master)
                return
            self.output += data.decode(errors="replace")


@pytest.fixture
def stack(served: Stack) -> Stack:
    """ClickHouse with its tables, for all tests of this module."""
    return served


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    """Terminals to be closed at the end of the test."""
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


@pytest.fixture
def terminal(stack: Stack, terminals: list[Terminal]) -> Terminal:
    """A usual terminal."""
    terminals.append(Terminal(stack))
    return terminals[-1]


def fill(stack: Stack, table: str, mt: str, count: int, ts: str = "now64(3)") -> None:
    stack.query(f"INSERT INTO mexc_data.{table} SELECT {ts}, '{mt}', 'm' FROM numbers({count})")


def test_it_shows_rows_by_type_with_rates_and_sizes_and_gives_the_screen_back(stack: Stack, terminal: Terminal) -> None:
    for mt, count in {"t": 13, "d": 1323, "dp": 92, "dl": 1}.items():
        fill(stack, "btc", mt, count)
    terminal.wait_for(r"\nbtc +13 +1,323 +92 +1 +1,429 +\d+ s ago\n")
    terminal.wait_for(r"\neth +0 +0 +0 +0 +0 +no rows yet\n")
    screen = terminal.wait_for(r"\n +\+0\.0/s +\+0\.0/s +\+0\.0/s +\+0\.0/s +\+0\.0/s\n")
    directory = stack.data / "store" / ALL_CONFIGS[0]["uuid"][:3] / ALL_CONFIGS[0]["uuid"]
    together = sum((directory / file).stat().st_size for file in ("data.bin", "index.mrk"))
    data_bin, index_mrk = (human_size((directory / file).stat().st_size) for file in ("data.bin", "index.mrk"))
    sizes = rf"{human_size(together)} +{data_bin} +{index_mrk} +4 +357\.2 +-"
    assert re.search(rf"\nbtc +{sizes}\n", screen)
    assert re.search(rf"\nall +{sizes}\n", screen)
    fill(stack, "btc", "d", 40)
    fill(stack, "eth", "dp", 3)
    terminal.wait_for(r"\nbtc +13 +1,363 +92 +1 +1,469 ")
    terminal.wait_for(r"\nall +13 +1,363 +95 +1 +1,472\n")
    rates = re.findall(r"\n +(?:\+\d+\.\d/s +){4}\+\d+\.\d/s", "\n".join(map("\n".join, terminal.screens())))
    assert any(float(rate) > 0 for line in rates for rate in re.findall(r"\+([\d.]+)/s", line))
    terminal.type("\x03")
    assert terminal.wait() == 0
    for lines in terminal.screens():
        assert len(lines) <= LINES
        assert max(map(len, lines), default=0) <= COLUMNS
    last = terminal.output.rpartition(TO_SCREEN)[2]
    assert last.count(FROM_SCREEN) == 1
    assert SHOW_CURSOR in last[last.index(FROM_SCREEN) - 20 :]
    assert "Traceback" not in terminal.output


def test_three_collectors_and_a_failure_fit_80_by_24(terminals: list[Terminal], tmp_path: Path) -> None:
    with open_stack(tmp_path) as stack:
        server = stack.clickhouse()
        stack.setup()
        journal = Path(stack.env["JOURNAL_DIR"])
        journal.mkdir()
        note(journal, "btc", "sol")
        note(journal, "eth", stuck_for=600.0)
        for table in ("btc", "eth", "sol"):
            for mt in ("t", "d", "dp", "dl"):
                fill(stack, table, mt, 4_000_000)
        terminals.append(Terminal(stack))
        screen = terminals[0].wait_for(r"\nbtc +4,000,000 +4,000,000 +4,000,000 +4,000,000 +16\.00M")
        assert re.search(r"\nall +12\.00M +12\.00M +12\.00M +12\.00M +48\.00M\n", screen)
        assert re.search(r"\nall .* 14,133\n", screen)
        assert re.search(r" UTC\n\neth: ClickHouse has taken no rows for 600 s; 4,711 rows wait, ", screen)
        assert "\nbtc: working, 4,711 rows wait\nsol: working, 4,711 rows wait\n" in screen
        server.stop(signal.SIGKILL)
        reason = (
            f"ClickHouse at 127.0.0.1:{stack.port} cannot be reached: connection refused; trying\nagain; what follows"
        )
        screen = terminals[0].wait_for(re.escape(reason) + r" is \d+ s old\n")
        assert re.search(r"\nbtc +4,000,000 .* 16\.00M ", screen)
        lines = screen.split("\n")
        assert len(lines) <= LINES
        assert screen.rstrip().endswith("Ctrl-C ends.")
        stack.clickhouse()
        eventually(lambda: "cannot be reached" not in terminals[0].screen(0), "it goes on")


def note(journal: Path, *tables: str, stuck_for: float = 0.0) -> None:
    """Leave the status of a collector for each of the tables."""
    status = Status(time.time() + 25, 0.0, 0.0, stuck_for, 4711, journal_full=False)
    for table in tables:
        (journal / f"{table}.status.json").write_text(json.dumps(asdict(status)))


def test_at_60_columns_what_has_no_place_is_left_out_and_nothing_is_cut_off(
    stack: Stack, terminals: list[Terminal], tmp_path: Path
) -> None:
    terminals.append(Terminal(stack, columns=60, JOURNAL_DIR=tmp_path / "nowhere"))
    screen = terminals[0].wait_for("Ctrl-C ends.")
    assert re.search("^storage +on disk +data.bin +blocks +rows a block +in journal$", screen, re.MULTILINE)
    assert "…" not in screen
    why = "none runs, or they are of another folder, in containers, or have another JOURNAL_DIR"
    line = f"No collector has its journal here, in {tmp_path / 'nowhere'}: {why}"
    assert "".join(line.split()) in "".join(screen.split())


def test_rows_that_do_not_come_any_more_are_stale_in_words(stack: Stack, terminal: Terminal) -> None:
    fill(stack, "sol", "d", 1, "now64(3) - INTERVAL 5 HOUR")
    terminal.wait_for(r"\nsol .* 5 h ago\n.* STALE\n")
    fill(stack, "sol", "d", 1)
    terminal.wait_for(r"\nsol .* \d+ s ago\n(?!.* STALE)")


def test_a_table_that_is_away_is_explained(stack: Stack, terminal: Terminal) -> None:
    terminal.wait_for(r"\neth +\d")
    stack.query("RENAME TABLE mexc_data.eth TO mexc_data.eth_compacting_0123abcd")
    terminal.wait_for(
        r"\neth: is being compacted, rows wait; if nobody does, ch_setup.py finishes it\n[^~]*\neth .*see above\n"
    )
    stack.query("RENAME TABLE mexc_data.eth_compacting_0123abcd TO mexc_data.other")
    terminal.wait_for(r"\neth: does not exist: run ch_setup.py\n")
    stack.query("RENAME TABLE mexc_data.other TO mexc_data.eth")
    eventually(lambda: "eth: " not in terminal.screen(0), "it is there again")


def test_sigterm_ends_it_as_ctrl_c_does(terminal: Terminal) -> None:
    terminal.wait_for("Ctrl-C ends")
    terminal.send(signal.SIGTERM)
    assert terminal.wait() == 0
    assert terminal.output.rstrip().endswith(SHOW_CURSOR) or FROM_SCREEN in terminal.output[-40:]


def test_a_terminal_that_can_do_nothing_gets_plain_lines(stack: Stack, terminals: list[Terminal]) -> None:
    terminal = Terminal(stack, "dumb")
    terminals.append(terminal)
    eventually(lambda: terminal.output.count("Ctrl-C ends.") == 3, "the third refresh")
    terminal.type("\x03")
    assert terminal.wait() == 0
    assert "\x1b" not in terminal.output
    assert max(map(len, terminal.output.splitlines())) <= COLUMNS


def test_a_pipe_gets_plain_lines_at_once(stack: Stack) -> None:
    verif = stack.start("verif.py", "--watch", "0.1", LANG="C", PYTHONIOENCODING="ascii", FORCE_COLOR="")
    eventually(lambda: verif.output.count("Ctrl-C ends.") == 3, "the third refresh")
    assert verif.stop(signal.SIGINT) == 0
    assert verif.output.isascii()
    assert "\x1b" not in verif.output
    assert sum(line.startswith("rows| tickers| ") for line in verif.lines) >= 3
    assert "No collector has its journal here" in verif.output


def test_a_server_that_is_down_is_waited_for(stack: Stack) -> None:
    port = free_port()
    verif = stack.start("verif.py", "--watch", "0.1", CLICKHOUSE_PORT=port)
    down = f"ClickHouse at 127.0.0.1:{port} cannot be reached: connection refused; trying"
    eventually(lambda: verif.output.count(down) == 3, "the third try")
    assert verif.stop(signal.SIGINT) == 0
    assert "Traceback" not in verif.output


def test_a_wrong_password_is_one_line_and_exit_code_1(stack: Stack) -> None:
    verif = stack.run("verif.py", "--watch", CLICKHOUSE_PASSWORD="wrong")
    assert verif.wait() == 1
    assert verif.lines == [
        f"ClickHouse at 127.0.0.1:{stack.port} refuses user default: check CLICKHOUSE_USER (from the environment) and"
        " CLICKHOUSE_PASSWORD (from the environment)"
    ]


def test_counting_takes_a_twentieth_of_the_time_and_holds_up_no_refresh(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[float] = []
    may_end = threading.Event()
    survey = storage.survey

    def slow_survey(*arguments: object) -> object:
        began = time.monotonic()
        assert may_end.wait(PATIENCE)
        ended.append(time.monotonic() - began)
        return survey(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(watch, "survey", slow_survey)
    monkeypatch.setattr(watch, "_MOMENT", 0.01)
    settings = load_settings(stack.env, None)
    archive = watch._Archive(settings, ALL_CONFIGS)
    console = Console(width=COLUMNS, record=True, file=io.StringIO())
    for _ in range(5):
        archive.look()
        console.print(watch._View(archive, settings))
    assert archive.looked_at
    assert archive.counts == (None, None)
    assert "Counting for " in console.export_text()
    may_end.set()
    eventually(lambda: archive.counting_since is None, "the count has ended")
    assert len(ended) == 1
    began = time.monotonic()
    while archive.counts[0] is None:
        assert time.monotonic() - began < PATIENCE
        archive.look()
    assert archive.counts[1]
    assert time.monotonic() - began >= 15 * ended[0]


def test_with_a_history_rows_of_both_count_and_do_not_fall_when_the_table_is_turned_over(stack: Stack) -> None:
    assert stack.run("ch_setup.py", HISTORY=1).wait() == 0
    stack.query("TRUNCATE TABLE mexc_data.eth")
    fill(stack, "eth", "d", 7)
    stack.query("INSERT INTO mexc_data.eth_history (n, ts, mt) SELECT number, now64(3), 'd' FROM numbers(5)")
    settings = load_settings(stack.env | {"HISTORY": "1"}, None)
    archive = watch._Archive(settings, ALL_CONFIGS[1:2])

    def shown() -> str:
        archive.look()
        console = Console(width=COLUMNS, record=True, file=io.StringIO())
        console.print(watch._View(archive, settings))
        return console.export_text()

    eventually(lambda: bool(re.search(r"\neth +0 +12 +0 +0 +12 ", shown())), "both are counted")
    (comment,) = stack.query("SELECT comment FROM system.tables WHERE database = 'mexc_data' AND name = 'eth'")[0]
    stack.query("TRUNCATE TABLE mexc_data.eth")
    stack.query(f"ALTER TABLE mexc_data.eth MODIFY COMMENT '{comment}+7'")
    try:
        shown()
        assert archive.tables[0].rate == 0
    finally:
        stack.query(f"ALTER TABLE mexc_data.eth MODIFY COMMENT '{comment}'")
        stack.query("DROP TABLE mexc_data.eth_history SYNC")


def test_many_symbols_on_a_small_screen_are_a_line_each_the_worst_first(
    stack: Stack, terminals: list[Terminal], tmp_path: Path
) -> None:
    symbols = ",".join([*CONTRACTS][:24])
    assert stack.run("ch_setup.py", SYMBOLS=symbols).wait() == 0
    settings = load_settings(stack.env | {"SYMBOLS": symbols}, None)
    *well, stale, stuck = [config["table_name"] for config in all_symbols(settings)]
    note(tmp_path, *well)
    note(tmp_path, stuck, stuck_for=600.0)
    for table in (*well, stale, stuck):
        fill(stack, table, "t", 5, "now64(3) - INTERVAL 5 HOUR" if table == stale else "now64(3)")
    terminals.append(Terminal(stack, JOURNAL_DIR=tmp_path, SYMBOLS=symbols))
    for columns, lines, shown in ((80, 24, 15), (60, 15, 5)):
        terminals[0].resize(columns, lines)
        screen = terminals[0].wait_for(rf"\n{24 - shown} more .* all well\n").split("\n")
        assert len(screen) <= lines
        assert max(map(len, screen)) <= columns
        head = next(number for number, line in enumerate(screen) if line.startswith("rows "))
        above = " ".join(screen[2:head])
        assert above.startswith(f"24 symbols: 2 need a look; {stuck}: ClickHouse has taken no rows for 600 s; 4,711")
        assert re.match(rf"{stuck} .*  ClickHouse has taken no rows .*…$", screen[head + 2])
        assert re.match(rf"{stale} .* 5 h ago  STALE$", screen[head + 3])
        assert re.match(r"btc .* \d+ s ago  working, 4,711 rows wait$", screen[head + 4])
        assert screen[head + 2 + shown].startswith(f"{24 - shown} more ")
        assert screen[head + 3 + shown].startswith("all ")
        assert screen[-1].endswith("Ctrl-C ends.")
