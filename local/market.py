"""A market that behaves like one of MEXC's perpetual futures, for tests, demonstrations and benchmarks.

In: a symbol, a seed and, at each step, the clock (milliseconds since the epoch). Out: the frames that MEXC would
push, as texts, and the candles of the deals made so far. Nothing here reads a clock or a socket, and the same seed
and clock give the same texts. Numbers are whole ticks inside and exact decimals on the wire, never binary floats. An
unknown symbol raises KeyError.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from random import Random
from typing import NamedTuple

LEVELS = 20  # of each side of a book
KEPT_DEALS = 100  # as many as MEXC's REST interface returns
KEPT_BARS = 31 * 24 * 60
MINUTE = 60  # seconds


class Contract(NamedTuple):
    """What one contract is: prices have `decimals` digits after the point, and one contract is `size` coins."""

    start: int  # the first price, in ticks of 10 ** -decimals USDT
    decimals: int
    size: str  # a JSON number
    activity: float  # how often something happens, where BTC is 1


CONTRACTS = {
    "BTC_USDT": Contract(840_000, 1, "0.0001", 1.0),
    "ETH_USDT": Contract(290_000, 2, "0.01", 0.75),
    "SOL_USDT": Contract(14_000, 2, "0.1", 0.6),
    "XRP_USDT": Contract(21_000, 4, "1", 0.4),
    "BNB_USDT": Contract(8_800, 1, "0.01", 0.3),
    "DOGE_USDT": Contract(15_000, 5, "100", 0.3),
    "ADA_USDT": Contract(4_500, 4, "1", 0.2),
    "LINK_USDT": Contract(14_000, 3, "0.1", 0.2),
    "AVAX_USDT": Contract(15_000, 3, "0.1", 0.2),
    "LTC_USDT": Contract(9_500, 2, "0.01", 0.2),
}
_TAIL = """
    TRX DOT BCH UNI NEAR APT ARB OP SUI SEI PEPE SHIB WIF 1000BONK FIL ATOM ETC XLM ICP HBAR INJ TIA IMX RENDER GRT
    AAVE MKR SAND MANA AXS GALA CHZ ENJ S ALGO VET EGLD THETA EOS XTZ FLOW KAVA RUNE STX LDO CRV SNX COMP SUSHI YFI
    1INCH DYDX GMX PENDLE JUP PYTH JTO ENA ETHFI W STRK ZK ZRO NOT TON DOGS HMSTR CATI EIGEN SCR MOVE ME PENGU USUAL
    HYPE VIRTUAL AIXBT FARTCOIN TRUMP MELANIA KAITO BERA IP LAYER RED NIL PARTI WAL BABY INIT SIGN HAEDAL SXT SOPH
    HOME RESOLV SAHARA NEWT H PUMP ERA CROSS TREE PROVE WLFI LINEA AVNT ASTER XPL ZEC DASH XMR NEO QTUM ONT IOTA ZIL
    ICX RVN KSM CELO ROSE ONE MINA CFX JASMY MASK ANKR BAT ZRX STORJ SKL CKB AR FET TAO WLD ORDI BLUR PEOPLE LUNC
    BOME TURBO MEW BRETT POPCAT MOODENG GOAT PNUT ACT NEIRO
"""
CONTRACTS |= {
    f"{coin}_USDT": Contract(1_000 + 97 * place, 2 + place % 4, ("0.1", "1", "10")[place % 3], 0.1)
    for place, coin in enumerate(_TAIL.split())
}


class Deal(NamedTuple):
    """One trade; `price` is a JSON number, `side` 1 for a buyer and 2 for a seller who took the other's offer."""

    price: str
    volume: int  # contracts
    side: int
    opens: int  # MEXC's `O`: 1 opens a position, 2 closes one, 3 neither
    own: int  # MEXC's `M`: 1 if both sides are one account's, else 2
    time_ms: int
    number: int

    def text(self) -> str:
        """Return the deal as REST gives it, which is without its number: two deals may be equal in all of it."""
        return (
            f'{{"p":{self.price},"v":{self.volume},"T":{self.side},"O":{self.opens},"M":{self.own},"t":{self.time_ms}}}'
        )

    def pushed(self) -> str:
        """Return the deal as the WebSocket pushes it."""
        return f'{self.text()[:-1]},"i":"{self.number}","cts":"{self.time_ms}"}}'


@dataclass(slots=True)
class Bar:
    """The deals of one minute; prices are in ticks, and of no meaning while there is no deal."""

    time: int  # seconds since the epoch
    contracts: int = 0
    paid: int = 0  # contracts x ticks
    open: int = 0
    high: int = 0
    low: int = 0
    close: int = 0

    def add(self, ticks: int, contracts: int) -> None:
        """Take in a deal, the newest."""
        if not self.contracts:
            self.open = self.high = self.low = ticks
        self.high, self.low, self.close = max(self.high, ticks), min(self.low, ticks), ticks
        self.contracts += contracts
        self.paid += contracts * ticks


class Level(NamedTuple):
    """One price of a book, and its text ``[price,contracts,orders]``."""

    ticks: int
    text: str


class Event(NamedTuple):
    """Something that happened in a market: `size` deals, or a new book, or a ticker."""

    channel: str  # "deal", "depth.full" or "ticker"
    size: int  # frames, where deals are pushed one by one
    pause: float  # seconds of market time until the next event
    envelope: str
    data: Callable[[bool, int], list[str]]

    def frames(self, compress: bool = False, limit: int = LEVELS) -> list[str]:
        """Return the frames of a subscription: deals in one list if `compress`, `limit` levels of each side."""
        return [self.envelope.replace("DATA", data) for data in self.data(compress, limit)]


# MEXC's keys come in any order.
_ENVELOPES = (
    '{"symbol":"%(symbol)s","data":DATA,"channel":"push.%(channel)s","ts":%(ts)d}',
    '{"channel":"push.%(channel)s","data":DATA,"symbol":"%(symbol)s","ts":%(ts)d}',
    '{"symbol":"%(symbol)s","ts":%(ts)d,"channel":"push.%(channel)s","data":DATA}',
)
_BOOKS = (
    '{"cts":%(cts)d,"asks":[%(asks)s],"bids":[%(bids)s],"version":%(version)d}',
    '{"version":%(version)d,"bids":[%(bids)s],"asks":[%(asks)s],"cts":%(cts)d}',
)
_TICKER = (
    '{"symbol":"%(symbol)s","lastPrice":%(last)s,"riseFallRate":%(rate)s,"fairPrice":%(fair)s,"indexPrice":%(index)s,'
    '"volume24":%(volume)d,"amount24":%(amount)s,"maxBidPrice":%(max_bid)s,"minAskPrice":%(min_ask)s,'
    '"lower24Price":%(low)s,"high24Price":%(high)s,"timestamp":%(ts)d,"bid1":%(bid)s,"ask1":%(ask)s,'
    '"holdVol":%(held)d,"riseFallValue":%(rise)s,"fundingRate":%(funding)s,"zone":"UTC+8",'
    '"riseFallRates":[%(rate)s,0.0011,0.0701,0.365,0.2581,-0.2565],"riseFallRatesOfTimezone":[0.0035,%(rate)s,-0.0270]}'
)

_COLUMNS = ("time", "open", "close", "high", "low", "vol", "amount", "realOpen", "realClose", "realHigh", "realLow")


@lru_cache(maxsize=1 << 16)
def number(units: int, decimals: int, padded: bool = False) -> str:
    """Return `units` / 10**`decimals` as MEXC writes numbers.

    Without trailing zeros, so that 754800 / 10 is ``7.548E+4`` and 840550 / 10 is ``84055``; `padded` with them.
    """
    value = Decimal(units).scaleb(-decimals)
    return str(value if padded else value.normalize())


def real(value: Decimal) -> str:
    """Return a number as Java writes a double, and MEXC what it sums up: ``5587051.0``, ``6.106243567181E7``."""
    value = value.normalize()
    if value and not -3 <= value.adjusted() < 7:
        mantissa, _, exponent = f"{value:E}".partition("E")
        return f"{mantissa if '.' in mantissa else f'{mantissa}.0'}E{int(exponent)}"
    text = f"{value:f}"
    return text if "." in text else f"{text}.0"


class Market:
    """One symbol's market. `deals` holds the last ones, oldest first."""

    def __init__(self, symbol: str, seed: int = 0) -> None:
        self.symbol = symbol
        self.contract = CONTRACTS[symbol]
        self.deals: deque[Deal] = deque(maxlen=KEPT_DEALS)
        self._random = Random(f"{seed} {symbol}")
        self._due = {"ticker": 0.0, "deal": 0.0, "depth.full": 0.0}  # seconds of market time
        self._deals_per_second = 10.0
        self._last = self._high = self._low = start = self.contract.start
        self._asks = self._side(start + 1, 1)
        self._bids = self._side(start, -1)
        self._version = self._random.randrange(10**9, 10**11)
        self._number = self._random.randrange(10**9, 10**11)
        self._volume = self._random.randrange(10**8)
        self._amount = round(self._volume * start * 10 ** (2 - self.contract.decimals) * float(self.contract.size))
        self._held = self._random.randrange(10**6, 10**9)
        self._funding = 72  # millionths
        self._bars: deque[Bar] = deque(maxlen=KEPT_BARS)  # a minute each, without holes

    @property
    def funding_rate(self) -> str:
        """The rate as MEXC writes it, of the last ticker."""
        return number(self._funding, 6)

    def klines(self, start: int, end: int, limit: int, now_ms: int) -> str:
        """Return the candles of the minutes from `start` to `end`, seconds since the epoch, as REST gives them.

        These are the newest `limit` of them, from the first deal on, and the minute that is under way at `now_ms` is
        among them. A minute without deals has no contracts and the price before it. `open` is the close before.
        """
        columns: dict[str, list[str]] = {name: [] for name in _COLUMNS}
        close = self.contract.start
        if self._bars:
            self._go_on(now_ms)
        for bar in self._bars:
            before, close = close, bar.close if bar.contracts else close
            own = (bar.open, bar.close, bar.high, bar.low) if bar.contracts else (close,) * 4
            prices = (before, close, max(before, own[2]), min(before, own[3]), *own)
            if start <= bar.time <= end:
                amount = Decimal(bar.paid).scaleb(-self.contract.decimals) * Decimal(self.contract.size)
                texts = [number(ticks, self.contract.decimals) for ticks in prices]
                row = (str(bar.time), *texts[:4], real(Decimal(bar.contracts)), real(amount), *texts[4:])
                for column, text in zip(columns.values(), row, strict=True):
                    column.append(text)
        return "{" + ",".join(f'"{name}":[{",".join(texts[-limit:])}]' for name, texts in columns.items()) + "}"

    def _go_on(self, time_ms: int) -> int:
        """See that there are bars up to this moment; return the time of its own."""
        time = time_ms // 1000 // MINUTE * MINUTE
        if not self._bars:
            self._bars.append(Bar(time))
        while self._bars[-1].time < time:
            self._bars.append(Bar(self._bars[-1].time + MINUTE))
        return time

    def step(self, now_ms: int, *, still: bool = False) -> Event:
        """Let the next thing happen, at `now_ms`, and return it; a `still` book changes only below its levels here."""
        channel = min(self._due, key=self._due.__getitem__)
        now = self._due[channel]
        size = 1
        if channel == "deal":
            deals = self._trade(now_ms)
            size = len(deals)
            data = _pushed(deals)
            wait = self._random.expovariate(self._deals_per_second * self.contract.activity / size)
        elif channel == "depth.full":
            data = self._move(now_ms, still)
            wait = (0.1 + self._random.expovariate(1 / 0.17)) / self.contract.activity
        else:
            data = self._ticker(now_ms)
            wait = 1 + 2 * self._random.random()
        self._due[channel] = now + wait
        envelope = self._random.choice(_ENVELOPES) % {"symbol": self.symbol, "channel": channel, "ts": now_ms}
        return Event(channel, size, min(self._due.values()) - now, envelope, data)

    def _trade(self, now_ms: int) -> list[Deal]:
        """Let one taker trade with one to five makers; return the deals, oldest first."""
        random = self._random
        if random.random() < 0.02:  # busy and quiet times, about as recorded
            self._deals_per_second = 3 * 10 ** random.random()
        side = 1 + (random.random() < 0.5)
        book = self._asks if side == 1 else self._bids
        count = min(5, 1 + int(random.expovariate(1.5)))
        earliest = self.deals[-1].time_ms if self.deals else 0
        deals: list[Deal] = []
        for place in range(count):
            self._number += 1 + int(random.expovariate(0.3))
            if deals and random.random() < 0.1:  # the next offer was as large, and told apart by its number only
                deal = deals[-1]._replace(number=self._number)
            else:
                self._last = book[place // 2].ticks
                volume = int(10 ** (3.5 * random.random()))
                time_ms = max(earliest, now_ms - (count - 1 - place))
                opens, own = 1 + int(3 * random.random()), 1 + int(2 * random.random())
                deal = Deal(self._price(self._last), volume, side, opens, own, time_ms, self._number)
            deals.append(deal)
            volume, scale = deal.volume, 10 ** (2 - self.contract.decimals) * float(self.contract.size)
            self._volume += volume
            self._amount += round(volume * self._last * scale)
            time = self._go_on(deal.time_ms)  # no deal is before the one before, but a bar may have begun since
            self._bars[(time - self._bars[-1].time) // MINUTE - 1].add(self._last, volume)
        self._high = max(self._high, self._last)
        self._low = min(self._low, self._last)
        self.deals.extend(deals)
        return deals

    def _move(self, now_ms: int, still: bool) -> Callable[[bool, int], list[str]]:
        """Change a little of the book, unless it is `still`; return what gives its text."""
        random = self._random
        # A quiet market's book is often pushed since a level below these has changed; BTC's never was.
        quiet = self.contract.activity < 1 and random.random() < 0.3 * (1 - self.contract.activity)
        if not (still or quiet):
            self._change_book()
        self._version += 1 + int(random.expovariate(0.05))
        values = {"cts": now_ms - int(5 * random.random()), "version": self._version}
        template = _BOOKS[random.random() < 0.2]
        asks = [level.text for level in self._asks]
        bids = [level.text for level in self._bids]
        return lambda _compress, limit: [
            template % {**values, "asks": ",".join(asks[:limit]), "bids": ",".join(bids[:limit])}
        ]

    def _change_book(self) -> None:
        random = self._random
        for _ in range(1 + int(3 * random.random())):
            side = self._asks if random.random() < 0.5 else self._bids
            place = int(LEVELS * random.random() ** 2)  # most happens near the touch
            side[place] = self._level(side[place].ticks)
        # Further from the start, a move back is more likely: the price never comes near zero.
        up = random.random() * (self._bids[0].ticks + self.contract.start) < self.contract.start
        while random.random() < 0.4:
            ahead, behind, direction = (self._asks, self._bids, 1) if up else (self._bids, self._asks, -1)
            taken = ahead.pop(0)
            ahead.append(self._level(ahead[-1].ticks + direction * self._gap()))
            behind.insert(0, self._level(taken.ticks))
            behind.pop()

    def _ticker(self, now_ms: int) -> Callable[[bool, int], list[str]]:
        """Return what gives the text of a ticker."""
        random = self._random
        start = self.contract.start
        last = self._last
        self._held += random.randrange(-1000, 1001)
        if random.random() < 0.1:
            self._funding = random.randrange(-100, 200)
        amount = number(self._amount, 2)
        if random.random() < 0.05:
            amount = f"{self._amount // 100}.{'0' * 30}"  # seen on the wire
        text = _TICKER % {
            "symbol": self.symbol,
            "ts": now_ms,
            "last": self._price(last),
            "fair": self._price(last + random.randrange(-3, 4)),
            "index": self._price(last + random.randrange(-9, 10)),
            "bid": self._price(self._bids[0].ticks),
            "ask": self._price(self._asks[0].ticks),
            "max_bid": self._price(last * 11 // 10),
            "min_ask": self._price(last * 9 // 10),
            "low": self._price(self._low),
            "high": self._price(self._high),
            "rise": self._price(last - start),
            "rate": number((last - start) * 10_000 // start, 4),
            "volume": self._volume,
            "amount": amount,
            "held": self._held,
            "funding": self.funding_rate,
        }
        return lambda _compress, _limit: [text]

    def _side(self, ticks: int, direction: int) -> list[Level]:
        levels = []
        for _ in range(LEVELS):
            levels.append(self._level(ticks))
            ticks += direction * self._gap()
        return levels

    def _level(self, ticks: int) -> Level:
        contracts = int(10 ** (1.7 + 3.4 * self._random.random()))
        orders = 1 + int(self._random.expovariate(0.7))
        return Level(ticks, f"[{self._price(ticks)},{contracts},{orders}]")

    def _gap(self) -> int:
        return 1 + int(self._random.expovariate(1.2))

    def _price(self, ticks: int) -> str:
        return number(ticks, self.contract.decimals, self._random.random() < 0.125)


def _pushed(deals: list[Deal]) -> Callable[[bool, int], list[str]]:
    texts = [deal.pushed() for deal in deals]
    return lambda compress, _limit: [f"[{','.join(reversed(texts))}]"] if compress else texts


def frames(symbol: str, seed: int, start_ms: int) -> Iterator[tuple[float, str]]:
    """Yield without end what a subscriber of all three channels gets, deals one by one.

    Each item is (seconds since the frame before, frame); frames are stamped with the time at which they are due.
    """
    market = Market(symbol, seed)
    now, delay = 0.0, 0.0
    while True:
        event = market.step(start_ms + round(now * 1000))
        for text in event.frames():
            yield delay, text
            delay = 0.0
        delay = event.pause
        now += delay
