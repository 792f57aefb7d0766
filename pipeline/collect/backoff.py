"""How long to wait before the next try."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator


def backoff(first: float = 1.0, cap: float = 60.0, jitter: Callable[[], float] = random.random) -> Iterator[float]:
    """Yield delays in seconds for ever: none, then `first`, doubling up to `cap`, each shortened by up to a half.

    `jitter` returns numbers from 0 to 1; it keeps collectors that lost the same server from coming back in step.
    """
    yield 0.0
    delay = first
    while True:
        yield min(delay, cap) * (1 - jitter() / 2)
        delay = min(delay * 2, cap)
