"""What is known of the connections of one symbol."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from config import BTC_CONFIG, Settings
from pipeline.collect.health import Heartbeat
from pipeline.collect.intake import Intake
from pipeline.collect.journal import Journal
from pipeline.collect.stats import Stats


def test_a_connection_that_ends_before_it_is_up_is_not_counted_down(tmp_path: Path) -> None:
    """The feed tells of one where a subscription cannot be sent."""
    settings = Settings(journal_dir=str(tmp_path))
    stats = Stats("BTC_USDT", "btc")
    said: list[str] = []
    with closing(Journal(tmp_path / "btc.db", 1 << 30)) as journal:
        heartbeat = Heartbeat(settings, "btc", journal.position("btc"))
        intake = Intake(BTC_CONFIG, settings, journal, stats, heartbeat, said.append, said.append)
        (connection,) = intake.connections
        connection.dropped("Lost it")
        assert (stats.connected, said) == (0, ["Lost it"])
        connection.connected()
        assert stats.connected == 1
        connection.dropped("Lost it")
        assert stats.connected == 0
