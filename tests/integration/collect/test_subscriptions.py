"""Each subscription is watched by itself: while tickers and books flow, deals may be refused, ignored, or die."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from pipeline.messages import DEADLETTER
from tests.stack import Exchange, Process, Stack, eventually

# btcdat.py with a tenth of the patience.
QUICKER = """
import sys
from config import BTC_CONFIG
from pipeline.collect import channels
channels.SILENT = {method: 3.0 for method in channels.SILENT}
channels.CONFIRM = 3.0
channels.OWED = 6.0
channels._PAUSE = 0.5
channels._FOLLOWS = 0.5
from pipeline.collect.collector import collect
sys.exit(collect(BTC_CONFIG))
"""


class Lab:
    def __init__(self, stack: Stack, *faults: str) -> None:
        self.stack = stack
        self.exchange: Exchange = stack.exchange(
            "--rate", 20, *(option for name in faults for option in ("--fault", name))
        )
        self.collector: Process = stack.start("-c", QUICKER)

    def health(self) -> tuple[int, str]:
        checked = self.stack.run("-m", "pipeline.collect.health")
        return checked.wait(), checked.output

    def is_unhealthy(self, words: str) -> bool:
        code, line = self.health()
        return code == 1 and words in line

    def recovers(self) -> None:
        """Check that deals come again, and that all is well then."""
        before = self.stack.query("SELECT count() FROM mexc_data.btc WHERE mt = 'd'")[0][0]
        query = "SELECT count() FROM mexc_data.btc WHERE mt = 'd'"
        eventually(lambda: self.stack.query(query)[0][0] > before + 10, "deals")
        eventually(lambda: self.health()[0] == 0, "health")
        assert self.collector.stop() == 0


@pytest.fixture
def stack(running: Stack) -> Iterator[Stack]:
    yield running
    for process in running.processes:
        assert "Traceback" not in process.output


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("deal-refused", "sub.deal is refused: "),
        ("deal-refused-object", "sub.deal is refused: "),
        ("deal-ignored", "sub.deal is not confirmed for "),
        ("depth-refused", "sub.depth.full is refused: "),
        ("ticker-ignored", "sub.ticker is not confirmed for |sub.ticker brings nothing for "),
        ("ticker-mute", "sub.ticker brings nothing for "),
        ("depth-mute", "sub.depth.full brings nothing for "),
        ("deal-mute", "sub.deal brings nothing, while traded volume rises"),
    ],
)
def test_a_subscription_that_is_not_taken(stack: Stack, fault: str, words: str) -> None:
    lab = Lab(stack, fault)
    lab.collector.wait_for(rf"^BTC_USDT: ({words})")
    eventually(
        lambda: lab.is_unhealthy(fault.partition("-")[0].replace("depth", "depth.full")), "an unhealthy collector"
    )
    if "refused" in fault:
        letters = [m for _, mt, m in stack.rows() if mt == DEADLETTER]
        assert letters
        assert all(json.loads(letter)["channel"].startswith("rs.sub.") for letter in letters)
    lab.collector.wait_for("^Errors: [1-9]")
    lab.collector.wait_for(r"^Gave up .*: sub\.")
    lab.exchange.fault("none")
    lab.recovers()


@pytest.mark.parametrize("channel", ["ticker", "deal", "depth"])
def test_a_subscription_that_dies_is_asked_for_again_on_the_same_connection(stack: Stack, channel: str) -> None:
    lab = Lab(stack)
    stack.wait_for_rows(60)
    lab.exchange.fault(f"{channel}-dies")
    lab.collector.wait_for(rf"^BTC_USDT: sub\.{channel}\S* brings nothing")
    lab.recovers()
    assert "Gave up" not in lab.collector.output


def test_the_deals_of_a_subscription_that_was_dead_are_filled_in(stack: Stack) -> None:
    lab = Lab(stack)
    stack.wait_for_rows(60)
    lab.exchange.fault("deal-dies")
    lab.collector.wait_for(r"^BTC_USDT: \d+ missed deals? filled in; ")
    lab.recovers()
