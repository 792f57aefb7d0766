"""Which deals are asked for after a gap, and when; the exchange's REST is a server of the test's."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.collect.gaps import Gaps
from pipeline.collect.journal import Journal
from pipeline.messages import Row
from tests.stack import eventually

BEGIN = 1_790_000_000_000


class Rest(ThreadingHTTPServer):
    """Lists `deals`: (milliseconds after BEGIN, trade id)."""

    def __init__(self) -> None:
        self.deals: list[tuple[int, int]] = []
        self.asked = 0
        self.may_answer = threading.Event()
        self.may_answer.set()
        super().__init__(("127.0.0.1", 0), _Answer)


class _Answer(BaseHTTPRequestHandler):
    server: Rest

    def do_GET(self) -> None:
        self.server.asked += 1
        self.server.may_answer.wait()
        deals = [{"p": 1, "v": 1, "T": 1, "t": BEGIN + t, "i": str(trade)} for t, trade in self.server.deals]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"success": True, "data": deals}).encode())

    def log_message(self, *_: object) -> None:
        pass


class Feed:
    """What a collector does with its feed, as far as gaps are concerned; times are milliseconds after BEGIN."""

    def __init__(self, path: Path) -> None:
        self.rest = Rest()
        self._thread = threading.Thread(target=self.rest.serve_forever)
        self._thread.start()
        self.journal = Journal(path, 1 << 30)
        self.said: list[str] = []
        url = f"ws://127.0.0.1:{self.rest.server_port}/edge"
        self.gaps = Gaps(url, "BTC_USDT", self.journal, self.said.append)

    def close(self) -> None:
        self.rest.may_answer.set()
        assert self.gaps.finish(10)
        self.rest.shutdown()
        self.rest.server_close()
        self._thread.join()
        self.journal.close()

    def deal(self, t: int, trade: int) -> None:
        self.journal.append([Row(BEGIN + t, "d", "1|1|1", trade)])
        self.gaps.data_came(BEGIN + t)

    def connect(self, confirmed: int) -> None:
        self.gaps.connected()
        self.gaps.deals_confirmed(BEGIN + confirmed)

    def trades(self) -> list[int]:
        """Return the trade ids in the journal, once nothing is being filled in."""
        assert self.gaps.finish(10)
        return [trade for (trade,) in self.journal._db.execute("SELECT id FROM rows ORDER BY seq")]

    def filled(self, times: int) -> None:
        eventually(lambda: len([line for line in self.said if "filled in" in line]) == times, "the line that says it")


@pytest.fixture
def feed(tmp_path: Path) -> Iterator[Feed]:
    opened = Feed(tmp_path / "btc.db")
    yield opened
    opened.close()


def test_deals_that_the_feed_brings_late_are_not_taken_for_missed(feed: Feed) -> None:
    """The process may be stopped, or its disk slow, while the first deals after a gap wait in the socket."""
    feed.deal(0, 1)
    feed.connect(confirmed=5_000)
    feed.rest.deals = [(0, 1), (3_000, 2), (5_500, 3), (9_000, 4)]
    feed.deal(5_500, 3)
    assert feed.gaps.finish(timeout=0)
    assert feed.rest.asked == 0, "more deals of this time may come"
    feed.deal(9_000, 4)
    feed.filled(1)
    assert feed.trades() == [1, 3, 4, 2]
    assert feed.said[-1] == "BTC_USDT: 1 missed deals filled in; none is missing"


def test_a_deal_made_just_before_the_last_row_and_not_pushed_is_missed(feed: Feed) -> None:
    feed.deal(0, 1)
    feed.deal(1_000, 2)
    feed.connect(confirmed=5_000)
    feed.rest.deals = [(0, 1), (990, 3), (1_000, 2), (9_000, 4)]
    feed.deal(9_000, 4)
    feed.filled(1)
    assert feed.trades() == [1, 2, 4, 3]


def test_deals_that_the_journal_no_longer_knows_are_not_taken_for_missed(feed: Feed) -> None:
    feed.deal(1_000, 2)  # before it, deal 1 had to make room on a full disk
    feed.connect(confirmed=5_000)
    feed.rest.deals = [(990, 1), (1_000, 2), (3_000, 3)]
    feed.deal(9_000, 4)
    feed.filled(1)
    assert feed.trades() == [2, 4, 3]


def test_a_gap_that_follows_before_the_first_is_filled(feed: Feed) -> None:
    feed.deal(0, 1)
    feed.connect(confirmed=5_000)
    feed.deal(5_500, 3)
    feed.connect(confirmed=8_000)
    feed.rest.deals = [(0, 1), (3_000, 2), (5_500, 3), (7_000, 4)]
    feed.deal(20_000, 5)
    feed.filled(1)
    assert feed.trades() == [1, 3, 5, 2, 4]


def test_a_gap_that_follows_while_the_first_is_being_filled(feed: Feed) -> None:
    feed.deal(0, 1)
    feed.rest.may_answer.clear()
    feed.rest.deals = [(0, 1), (3_000, 2), (9_000, 3)]
    feed.connect(confirmed=5_000)
    feed.deal(9_000, 3)
    eventually(lambda: feed.rest.asked == 1, "a request")
    feed.connect(confirmed=15_000)
    feed.deal(20_000, 5)
    assert feed.rest.asked == 1
    feed.rest.deals += [(12_000, 4)]
    feed.rest.may_answer.set()
    feed.filled(1)
    assert feed.gaps.finish(10)
    feed.deal(20_001, 6)
    feed.filled(2)
    assert feed.trades() == [1, 3, 5, 2, 6, 4]
