"""Which deals are asked for after a gap, and when; the exchange's REST is a server of the test's."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from config import Settings
from pipeline.collect import gaps as module
from pipeline.collect.gaps import Gaps
from pipeline.collect.journal import Journal
from pipeline.collect.once import Once
from pipeline.messages import Row
from pipeline.rest import Rest
from tests.stack import eventually, free_port

BEGIN = 1_790_000_000_000


class Server(ThreadingHTTPServer):
    """Lists `deals`, oldest first: (milliseconds after BEGIN, contracts), without ids as MEXC does."""

    def __init__(self) -> None:
        self.deals: list[tuple[int, int]] = []
        self.with_ids = False
        self.asked = 0
        self.cut = 0  # answers that are cut amid their body
        self.may_answer = threading.Event()
        self.may_answer.set()
        super().__init__(("127.0.0.1", 0), _Answer)


class _Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.asked += 1
        server.may_answer.wait()
        deals: list[dict[str, Any]] = [
            {"p": 1, "v": v, "T": 1, "t": BEGIN + t} for t, v in reversed(server.deals[-100:])
        ]
        if server.with_ids:
            deals = [{**deal, "i": str(deal["v"])} for deal in deals]
        body = json.dumps({"success": True, "data": deals}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.cut:
            server.cut -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Feed:
    """What a collector does with its feed, as far as gaps are concerned; times are milliseconds after BEGIN."""

    def __init__(self, path: Path) -> None:
        self.server = Server()
        self._thread = threading.Thread(target=self.server.serve_forever)
        self._thread.start()
        self.journal = Journal(path, 1 << 30)
        self.once = Once(self.journal)
        self.said: list[str] = []
        settings = Settings(
            mexc_ws_url=f"ws://127.0.0.1:{free_port()}/edge",
            mexc_rest_url=f"http://127.0.0.1:{self.server.server_port}",
        )
        self.gaps = Gaps(Rest(settings), "BTC_USDT", self.journal, self.once, self.said.append)

    def close(self) -> None:
        self.server.may_answer.set()
        assert self.gaps.finish(10)
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()
        self.journal.close()

    def deal(self, t: int, contracts: int, pushed: int | None = None) -> None:
        """A deal comes, made at `t` and pushed then or later."""
        at = t if pushed is None else pushed
        self.once.keep([Row(BEGIN + at, "d", f"1|{contracts}|1", 10_000 + contracts, BEGIN + t)], 0)
        self.gaps.data_came(BEGIN + at)

    def ticker(self, t: int) -> None:
        self.once.keep([Row(BEGIN + t, "t", "1||||", 0, BEGIN + t)], 0)
        self.gaps.data_came(BEGIN + t)

    def connect(self, confirmed: int) -> None:
        self.gaps.connected()
        self.gaps.deals_confirmed(BEGIN + confirmed)

    def stored(self) -> list[int]:
        """Return the contracts of the deals in the journal, once nothing is being filled in."""
        assert self.gaps.finish(10)
        return [int(m.split("|")[1]) for _, m, _, _ in self.journal.newest_deals(1000)]

    def filled(self, times: int) -> None:
        eventually(lambda: len([line for line in self.said if "filled in; " in line]) == times, "the line that says it")


@pytest.fixture
def feed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Feed]:
    monkeypatch.setattr(module, "_RETRY", 0.05)
    opened = Feed(tmp_path / "btc.db")
    yield opened
    opened.close()


def test_deals_that_the_feed_brings_late_are_not_taken_for_missed(feed: Feed) -> None:
    """The process may be stopped, or its disk slow, while the first deals after a gap wait in the socket."""
    feed.deal(0, 1)
    feed.connect(confirmed=5_000)
    feed.server.deals = [(0, 1), (3_000, 2), (5_500, 3), (9_000, 4)]
    feed.deal(5_500, 3)
    assert feed.gaps.finish(timeout=0)
    assert feed.server.asked == 0, "more deals of this time may come"
    feed.deal(9_000, 4)
    feed.filled(1)
    assert feed.stored() == [1, 3, 4, 2]
    assert feed.said[-1] == "BTC_USDT: 1 missed deal filled in; none is missing"


def test_a_deal_pushed_long_after_it_was_made_and_filled_in_is_there_once(feed: Feed) -> None:
    feed.deal(0, 1)
    feed.connect(confirmed=5_000)
    feed.server.deals = [(0, 1), (5_200, 2), (5_900, 3)]
    feed.ticker(9_000)
    feed.filled(1)
    assert feed.stored() == [1, 2, 3]
    feed.deal(5_900, 3, pushed=10_000)
    feed.deal(5_200, 2, pushed=10_000)
    feed.deal(9_900, 4)
    assert feed.stored() == [1, 2, 3, 4]


def test_equal_deals_are_as_many_as_the_list_has(feed: Feed) -> None:
    feed.deal(0, 1)
    feed.connect(confirmed=5_000)
    feed.server.deals = [(0, 1), (3_000, 2), (3_000, 2), (3_000, 2), (9_000, 4)]
    feed.once.keep([Row(BEGIN + 3_000, "d", "1.0|2|1", 0, BEGIN + 3_000)], 0)  # one of them came, otherwise written
    feed.deal(9_000, 4)
    feed.filled(1)
    assert feed.stored() == [1, 2, 4, 2, 2]


def test_a_list_that_has_ids_and_a_deal_twice(feed: Feed) -> None:
    feed.server.with_ids = True
    feed.once.keep([Row(BEGIN, "d", "1|1|1", 1, BEGIN)], 0)
    feed.connect(confirmed=5_000)
    feed.server.deals = [(0, 1), (3_000, 2), (3_000, 2), (9_000, 4)]
    feed.once.keep([Row(BEGIN + 9_000, "d", "1|4|1", 4, BEGIN + 9_000)], 0)
    feed.gaps.data_came(BEGIN + 9_000)
    feed.filled(1)
    assert feed.stored() == [1, 4, 2]


def test_deals_that_stop_before_all_else_are_missed_from_there_on(feed: Feed) -> None:
    feed.deal(0, 1)
    for t in range(1_000, 10_001, 1_000):
        feed.ticker(t)
    feed.connect(confirmed=12_000)
    feed.server.deals = [(0, 1), *((t, t) for t in range(500, 12_000, 500)), (15_000, 99)]
    feed.deal(15_000, 99)
    feed.filled(1)
    assert sorted(feed.stored()) == [1, 99, *range(500, 12_000, 500)]
    assert feed.said == [
        "BTC_USDT: no market data from 2026-09-21 14:13:30 UTC to 2026-09-21 14:13:35 UTC (5.0 s)",
        "BTC_USDT: 23 missed deals filled in; none is missing",
    ]


def test_none_is_missing_is_said_only_where_the_list_goes_back_far_enough(feed: Feed) -> None:
    feed.deal(0, 1)
    feed.deal(2_000, 2)
    feed.connect(confirmed=50_000)
    feed.server.deals = [(t, t) for t in range(2_000, 60_000, 500)]  # the last 100 of them begin after the gap does
    feed.deal(59_500, 59_500)
    feed.filled(1)
    assert feed.said[-1].endswith("missed deals filled in; MEXC's list goes back only to 2026-09-21 14:13:30 UTC")


def test_a_list_that_is_behind_is_asked_for_again(feed: Feed) -> None:
    feed.deal(0, 1)
    feed.connect(confirmed=5_000)
    feed.server.deals = [(0, 1), (3_000, 2)]
    feed.server.may_answer.clear()
    feed.deal(9_000, 4)
    feed.server.may_answer.set()
    eventually(lambda: feed.server.asked >= 2, "a second request")
    feed.server.deals += [(4_000, 3), (9_000, 4)]
    feed.filled(1)
    assert sorted(feed.stored()) == [1, 2, 3, 4]


def test_an_answer_cut_amid_its_body_is_asked_for_again(feed: Feed) -> None:
    feed.deal(0, 1)
    feed.connect(confirmed=5_000)
    feed.server.deals = [(0, 1), (3_000, 2), (9_000, 4)]
    feed.server.cut = 1
    feed.deal(9_000, 4)
    feed.filled(1)
    assert sorted(feed.stored()) == [1, 2, 4]
    assert "cut" in feed.said[-2]
    assert feed.said[-2].endswith("asking again")


def test_deals_that_stop_while_the_connection_stays(feed: Feed) -> None:
    feed.deal(0, 1)
    feed.ticker(60_000)
    feed.gaps.deals_stopped()
    feed.gaps.deals_confirmed(BEGIN + 61_000)
    feed.server.deals = [(0, 1), (30_000, 2), (64_000, 3)]
    feed.deal(64_000, 3)
    feed.filled(1)
    assert sorted(feed.stored()) == [1, 2, 3]


def test_a_deal_made_just_before_the_newest_and_not_pushed_is_missed(feed: Feed) -> None:
    feed.deal(0, 1)
    feed.deal(1_000, 2)
    feed.connect(confirmed=5_000)
    feed.server.deals = [(0, 1), (990, 3), (1_000, 2), (9_000, 4)]
    feed.deal(9_000, 4)
    feed.filled(1)
    assert feed.stored() == [1, 2, 4, 3]


def test_deals_that_the_journal_no_longer_knows_are_not_taken_for_missed(feed: Feed) -> None:
    feed.deal(1_000, 2)  # before it, deal 1 had to make room on a full disk
    feed.connect(confirmed=5_000)
    feed.server.deals = [(990, 1), (1_000, 2), (3_000, 3), (9_000, 4)]
    feed.deal(9_000, 4)
    feed.filled(1)
    assert feed.stored() == [2, 4, 3]


def test_a_gap_that_follows_before_the_first_is_filled(feed: Feed) -> None:
    feed.deal(0, 1)
    feed.connect(confirmed=5_000)
    feed.deal(5_500, 3)
    feed.connect(confirmed=8_000)
    feed.server.deals = [(0, 1), (3_000, 2), (5_500, 3), (7_000, 4), (20_000, 5)]
    feed.deal(20_000, 5)
    feed.filled(1)
    assert feed.stored() == [1, 3, 5, 2, 4]


def test_a_gap_that_follows_while_the_first_is_being_filled(feed: Feed) -> None:
    feed.deal(0, 1)
    feed.server.may_answer.clear()
    feed.server.deals = [(0, 1), (3_000, 2), (9_000, 3)]
    feed.connect(confirmed=5_000)
    feed.deal(9_000, 3)
    eventually(lambda: feed.server.asked == 1, "a request")
    feed.connect(confirmed=15_000)
    feed.deal(20_000, 5)
    assert feed.server.asked == 1
    feed.server.deals += [(12_000, 4), (20_000, 5), (20_001, 6)]
    feed.server.may_answer.set()
    feed.filled(1)
    assert feed.gaps.finish(10)
    feed.deal(20_001, 6)
    feed.filled(2)
    assert feed.stored() == [1, 3, 5, 2, 6, 4]
