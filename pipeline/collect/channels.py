"""The subscriptions of a connection, each watched by itself: one can die while the others flow.

In: what frames tell of each, and the time. Out: which are in trouble, in words, and what to do about it: subscribe
anew, or, where that has not helped, make a new connection. Pure; times are seconds of any clock that never goes back.
Promise: a subscription that stays in trouble is tried ever less often, and never forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

SILENT = {"sub.ticker": 30.0, "sub.depth.full": 30.0}
"""Seconds, after which the silence of a subscription means that it is dead. One of deals may have nothing to say."""

CONFIRM = 30.0
"""Seconds that a subscription may take to be confirmed, by an answer or by its first push."""

OWED = 60.0
"""Seconds for which traded volume may rise and no deal come."""

_FOLLOWS = 5.0  # seconds; a ticker that counts a deal comes so long after the deal at most
_PAUSE = 5.0  # seconds from a trouble to the first try to mend it; doubled with each try that does not help
_LONGEST_PAUSE = 300.0  # seconds
_ASLEEP = 10.0  # seconds between two checks


class Useless(Exception):
    """This connection is to be replaced; the text says why."""


class Hopeless(Useless):
    """The same, and another connection will hardly help: there is no hurry."""


@dataclass(slots=True)
class _Subscription:
    asked: float | None = None
    """When it was asked for, on this connection; None where it was not."""
    is_confirmed: bool = False
    newest: float = 0.0
    """When its newest push came, of any connection; 0 where none did."""
    alive: float = 0.0
    """When it was last asked for or pushed something."""
    refusal: str = ""
    trouble: str = ""
    """What is wrong with it, as it was said; that counts as one error until it is mended."""
    needs_push: bool = False
    """Whether an acknowledgement does not mend that."""
    tries: int = 0
    """How often something was tried to mend it."""
    next_try: float = 0.0


@dataclass
class Channels:
    """The subscriptions of one connection after the other.

    `methods` are such as ``sub.deal``; `failed` takes a line for each trouble that begins.
    """

    methods: Sequence[str]
    failed: Callable[[str], None]
    _all: dict[str, _Subscription] = field(init=False)
    _volume: int = 0
    _owed_since: float | None = None
    _owed_until: float = 0.0
    _checked: float = float("inf")

    def __post_init__(self) -> None:
        self._all = {method: _Subscription() for method in self.methods}

    @property
    def trouble(self) -> dict[str, str]:
        """What is wrong now, by method."""
        return {method: each.trouble for method, each in self._all.items() if each.trouble}

    def newest(self, method: str) -> float:
        """Return when the newest push of a subscription came; 0 where none did."""
        return self._all[method].newest

    def connected(self, now: float) -> None:
        """Note that all were asked for, on a new connection."""
        self._owed_since = None
        self._checked = now
        for each in self._all.values():
            each.asked = each.alive = now
            each.is_confirmed = False

    def dropped(self) -> None:
        """Note that there is no connection."""
        for each in self._all.values():
            each.asked = None

    def confirmed(self, method: str) -> bool:
        """Note that a subscription was acknowledged; return whether that is news."""
        each = self._all.get(method)
        if each is None or each.is_confirmed:
            return False
        each.is_confirmed, each.refusal = True, ""
        if not each.needs_push:
            each.trouble = ""
        return True

    def refused(self, method: str, text: str) -> None:
        """Note that a subscription was answered by anything but success."""
        if method in self._all:
            self._all[method].refusal = f"is refused: {text}"

    def came(self, method: str, now: float) -> bool:
        """Note a push; return whether it is the first sign that the subscription was taken."""
        each = self._all.get(method)
        if each is None:
            return False
        each.newest = each.alive = now
        each.refusal = each.trouble = ""
        each.tries = 0
        if method == "sub.deal":
            self._owed_since = None
        if each.is_confirmed:
            return False
        each.is_confirmed = True
        return True

    def traded(self, volume: int, now: float) -> None:
        """Note what a ticker says was traded in 24 hours, in contracts: where it rises, there was a deal."""
        deals = self._all.get("sub.deal")
        if deals and 0 < self._volume < volume and now - deals.alive > _FOLLOWS:
            if self._owed_since is None:
                self._owed_since = now
            self._owed_until = now
        self._volume = volume

    def check(self, now: float) -> list[str]:
        """Return the methods that are to be asked for again, now. Raises Useless."""
        again = []
        if now - self._checked > _ASLEEP:
            self._woke_up(now)
        self._checked = now
        for method, each in self._all.items():
            if each.asked is None:
                continue
            self._look(method, each, now)
            if not each.trouble or now < each.next_try:
                continue
            each.tries += 1
            each.next_try = now + CONFIRM + min(_PAUSE * 2**each.tries, _LONGEST_PAUSE)
            if each.tries % 2 == 0:
                raise Useless(f"{method} {each.trouble}")
            each.refusal = ""
            each.is_confirmed = False
            again.append(method)
        return again

    def _woke_up(self, now: float) -> None:
        """This process was stopped: the silence was its own."""
        self._owed_since = None
        for each in self._all.values():
            each.alive = now

    def _look(self, method: str, each: _Subscription, now: float) -> None:
        """Note what is wrong with a subscription, and say it where that is news."""
        silence = now - each.alive
        needs_push = True
        if silence > SILENT.get(method, float("inf")):
            trouble = f"brings nothing for {silence:.0f} s"
        elif method == "sub.deal" and self._is_owed_deals(now):
            trouble = "brings nothing, while traded volume rises"
        elif each.refusal:
            trouble, needs_push = each.refusal, False
        elif not each.is_confirmed and silence > CONFIRM:
            trouble, needs_push = f"is not confirmed for {silence:.0f} s", False
        else:
            return  # what was wrong before stays so until something comes
        if not each.trouble:
            self.failed(f"{method} {trouble}")
            each.next_try = max(each.next_try, now + _PAUSE)
        each.trouble, each.needs_push = trouble, needs_push

    def _is_owed_deals(self, now: float) -> bool:
        since = self._owed_since
        return since is not None and now - since > OWED and self._owed_until - since > OWED / 2
