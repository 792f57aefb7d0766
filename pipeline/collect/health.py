"""Whether a collector works: it notes its status each second, and a command reads it.

    python3 -m pipeline.collect.health [TABLE ...]      all collectors that have left a status here, or those named

With SYMBOLS, that is all of SYMBOLS, and of the others those that have left a status; what does not work comes first.

Out: one line per collector; exit code 0 if all of them work, 1 if one does not, 2 if a setting cannot be used. The
command reads a small file beside the journal (pipeline.status) and asks nobody. A status that cannot be written (a full
disk) never stops a collector; what is left is too old then, and that is noticed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict

from config import ALL_CONFIGS, PROJECT, ConfigError, Settings, load_settings, more_symbols
from pipeline.collect.journal import Position
from pipeline.status import STATUS_SUFFIX, Status, check, status_path


class Heartbeat:
    """Keeps a collector's status file up to date."""

    def __init__(
        self, settings: Settings, table_name: str, position: Position, history: Position | None = None
    ) -> None:
        """`position` is that of the table, `history` that of its history, where there is one."""
        self._path = status_path(settings, table_name)
        self._new = self._path.with_suffix(".new")
        self.position = position
        self.history = history
        self._start = self._last_frame = self._last_market = time.monotonic()
        self._progress = _Progress(position)
        self._history_progress = _Progress(history) if history else None
        self.status = Status(time.time(), 0.0, 0.0, 0.0, position.waiting, journal_full=False)
        """As of the last beat; for any thread."""

    def frame(self, *, is_market_data: bool) -> None:
        """Note that a frame came; in the feed's thread."""
        self._last_frame = time.monotonic()
        if is_market_data:
            self._last_market = self._last_frame

    def beat(
        self,
        *,
        journal_full: bool,
        being_compacted: bool = False,
        connections_down: int = 0,
        blocked: str = "",
        trouble: Sequence[str] = (),
        channel_ages: Mapping[str, float] | None = None,
    ) -> None:
        """Replace the status file, where that is possible; in the main thread."""
        now = time.monotonic()
        self.status = Status(
            written=time.time(),
            frame_age=now - self._last_frame,
            market_age=now - self._last_market,
            stuck_for=self._progress.stuck_for(now),
            waiting=self.position.waiting,
            journal_full=journal_full,
            being_compacted=being_compacted,
            connections_down=connections_down,
            blocked=blocked,
            trouble=list(trouble),
            channel_ages={name: min(age, now - self._start) for name, age in (channel_ages or {}).items()},
            history_waiting=self.history.waiting if self.history else None,
            history_stuck_for=self._history_progress.stuck_for(now) if self._history_progress else 0.0,
        )
        with suppress(OSError):
            self._new.write_text(json.dumps(asdict(self.status)))
            self._new.replace(self._path)


class _Progress:
    """Tells for how long rows have waited at a position, and none of them went on."""

    def __init__(self, position: Position) -> None:
        self._position, self._rows, self._last = position, position.rows, time.monotonic()

    def stuck_for(self, now: float) -> float:
        """Return that, in seconds, as of a moment of the monotonic clock."""
        waiting, rows = self._position.waiting, self._position.rows
        if not waiting or rows != self._rows:
            self._last, self._rows = now, rows
        return now - self._last


def main(names: list[str]) -> int:
    """Check the collectors of the tables `names`, or all; return the exit code."""
    try:
        settings = load_settings()
    except ConfigError as error:
        print(error)
        return 2
    directory = PROJECT / settings.journal_dir
    more = [config["table_name"] for config in more_symbols(settings)]
    if not names:
        names = sorted(path.name.removesuffix(STATUS_SUFFIX) for path in directory.glob(f"*{STATUS_SUFFIX}"))
        if more:  # and not those that were in it formerly
            names = [config["table_name"] for config in ALL_CONFIGS if config["table_name"] in names] + more
    if not names:
        print(f"no collector has reported in {directory} yet: it waits for the VPN, or is not running")
        return 1
    found = [(*check(status_path(settings, name), settings, time.time()), name) for name in names]
    if more:
        found.sort(key=lambda each: each[0])
        print(f"{sum(works for works, *_ in found)} of {len(found)} collectors work")
    for _, line, name in found:
        print(f"{name}: {line}")
    return 0 if all(works for works, *_ in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
