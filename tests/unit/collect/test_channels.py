"""Which subscription is in trouble, and what is done about it; by a clock of the test's own."""

from __future__ import annotations

import pytest

from pipeline.collect.channels import Channels, Useless

METHODS = ("sub.ticker", "sub.deal", "sub.depth.full")


class Watched:
    """Channels, seconds after the connection was made; each step of the clock is a check."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.now = 1000.0
        self.channels = Channels(METHODS, self.said.append)
        self.asked: list[tuple[float, str]] = []
        self.replaced: list[float] = []
        self.connect()

    def connect(self) -> None:
        self.begun = self.now
        self.channels.connected(self.now)

    def run(self, seconds: float, *flowing: str, volume: int = 0) -> None:
        """Let time pass, with a push of `flowing` each second, and `volume` traded in it as tickers tell."""
        for _ in range(round(seconds * 2)):
            self.now += 0.5
            if self.now % 1 == 0:
                for method in flowing:
                    self.channels.came(method, self.now)
                self.traded = getattr(self, "traded", 10_000) + volume
                self.channels.traded(self.traded, self.now)
            try:
                self.asked += [(self.now, method) for method in self.channels.check(self.now)]
            except Useless:
                self.replaced.append(self.now)
                self.channels.dropped()
                self.connect()

    def confirm(self, *methods: str) -> None:
        for method in methods:
            self.channels.confirmed(method)


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_all_is_well_while_all_flows(watched: Watched) -> None:
    watched.run(600, *METHODS, volume=5)
    assert (watched.said, watched.asked, watched.replaced, watched.channels.trouble) == ([], [], [], {})


def test_a_market_without_deals_is_no_trouble(watched: Watched) -> None:
    watched.confirm(*METHODS)
    watched.run(600, "sub.ticker", "sub.depth.full")
    assert (watched.said, watched.asked, watched.replaced) == ([], [], [])


def test_a_refused_subscription_is_said_and_asked_for_again(watched: Watched) -> None:
    watched.channels.refused("sub.deal", "Contract [BTC_USDT] not exists")
    watched.run(4, "sub.ticker", "sub.depth.full")
    assert watched.said == ["sub.deal is refused: Contract [BTC_USDT] not exists"]
    assert watched.channels.trouble == {"sub.deal": "is refused: Contract [BTC_USDT] not exists"}
    watched.run(3, "sub.ticker", "sub.depth.full")
    assert [method for _, method in watched.asked] == ["sub.deal"]
    watched.confirm("sub.deal")
    watched.run(300, "sub.ticker", "sub.depth.full")
    assert (len(watched.asked), len(watched.said), watched.channels.trouble) == (1, 1, {})


def test_one_that_is_refused_for_ever_is_tried_ever_less_often(watched: Watched) -> None:
    for _ in range(3600):
        if watched.now == watched.begun or (watched.asked and watched.now == watched.asked[-1][0]):
            watched.channels.refused("sub.deal", "no")
        watched.run(1, "sub.ticker", "sub.depth.full")
    assert len(watched.said) == 1
    tries = sorted([time for time, _ in watched.asked] + watched.replaced)
    assert len(tries) < 20
    assert tries[-1] - tries[-2] > 300
    assert abs(len(watched.asked) - len(watched.replaced)) <= 1


def test_one_that_is_not_answered(watched: Watched) -> None:
    watched.confirm("sub.ticker", "sub.depth.full")
    watched.run(29, "sub.ticker", "sub.depth.full")
    assert watched.said == []
    watched.run(8, "sub.ticker", "sub.depth.full")
    assert watched.said == ["sub.deal is not confirmed for 30 s"]
    assert [method for _, method in watched.asked] == ["sub.deal"]
    assert watched.replaced == []
    watched.run(60, "sub.ticker", "sub.depth.full")
    assert len(watched.replaced) == 1, "asking again did not help"
    watched.channels.came("sub.deal", watched.now)
    assert watched.channels.trouble == {}


@pytest.mark.parametrize("method", ["sub.ticker", "sub.depth.full"])
def test_one_that_falls_silent(watched: Watched, method: str) -> None:
    others = [each for each in METHODS if each != method]
    watched.run(10, *METHODS)
    watched.run(29, *others)
    assert watched.said == []
    watched.run(8, *others)
    assert watched.said == [f"{method} brings nothing for 30 s"]
    assert [each for _, each in watched.asked] == [method]
    watched.confirm(method)
    assert method in watched.channels.trouble, "a word is not a push"
    watched.channels.came(method, watched.now)
    assert watched.channels.trouble == {}


def test_deals_that_stop_while_the_volume_rises(watched: Watched) -> None:
    watched.run(10, *METHODS, volume=5)
    watched.run(60, "sub.ticker", "sub.depth.full", volume=5)
    assert watched.said == []
    watched.run(12, "sub.ticker", "sub.depth.full", volume=5)
    assert watched.said == ["sub.deal brings nothing, while traded volume rises"]
    assert [method for _, method in watched.asked] == ["sub.deal"]


def test_a_ticker_that_tells_of_a_deal_a_little_early_or_late_is_no_trouble(watched: Watched) -> None:
    watched.run(10, *METHODS)
    for _ in range(30):
        watched.run(20, "sub.ticker", "sub.depth.full")
        watched.traded += 7  # before its deal
        watched.run(2, "sub.ticker", "sub.depth.full")
        watched.channels.came("sub.deal", watched.now)
        watched.run(2, "sub.ticker", "sub.depth.full", volume=1)
    assert watched.said == []


def test_volume_that_falls_as_yesterday_passes_is_no_trouble(watched: Watched) -> None:
    watched.run(10, *METHODS)
    watched.run(600, "sub.ticker", "sub.depth.full", volume=-5)
    assert watched.said == []
