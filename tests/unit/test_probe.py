"""What cannot be waited for is not."""

from __future__ import annotations

import threading
import time

from pipeline.probe import _Try


def test_what_does_not_answer_is_left_alone() -> None:
    answered = threading.Event()
    tried = _Try(answered.wait, False)
    assert tried.result(time.monotonic()) is False
    answered.set()
    assert tried.result(time.monotonic() + 60) is True
