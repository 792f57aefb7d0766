"""The statistics block, line by line."""

import threading

from pipeline.collect.stats import Stats

RULE = "=" * 50


def block(stats: Stats, seconds: float = 15.0, waiting: int = 0) -> list[str]:
    return stats.block(seconds, waiting).split("\n")


def test_the_block_reads_as_in_the_readme() -> None:
    stats = Stats("BTC_USDT", "btc")
    stats.appended(["t"] * 7 + ["d"] * 140)
    stats.appended(["dp"] * 43)
    assert block(stats, 15.01) == [
        RULE,
        "BTC_USDT STATISTICS (Last 15s)",
        RULE,
        "Total Records Appended: 190",
        "Ticker Messages: 7 → btc/data.bin",
        "Deal Messages: 140 → btc/data.bin",
        "Depth Messages: 43 → btc/data.bin",
        "Skipped Messages: 0",
        "Errors: 0",
        "Rate: 12.66 records/sec",
        RULE,
    ]


def test_what_is_unusual_has_a_line_only_when_there_is_some() -> None:
    stats = Stats("ETH_USDT", "eth")
    stats.appended(["dl", "t", "dl"])
    stats.skipped()
    stats.error("error frame")
    stats.error("failed INSERT")
    stats.refused(5)
    stats.refused(2)
    assert block(stats, 2.0, waiting=12) == [
        RULE,
        "ETH_USDT STATISTICS (Last 2s)",
        RULE,
        "Total Records Appended: 3",
        "Ticker Messages: 1 → eth/data.bin",
        "Deal Messages: 0 → eth/data.bin",
        "Depth Messages: 0 → eth/data.bin",
        "Deadletter Messages: 2 → eth/data.bin",
        "Skipped Messages: 1",
        "Errors: 2",
        "Waiting in journal: 12",
        "LOST, journal full: 7",
        "Rate: 1.50 records/sec",
        RULE,
    ]


def test_each_block_counts_anew() -> None:
    stats = Stats("BTC_USDT", "btc")
    stats.appended(["t", "dl"])
    stats.skipped()
    stats.error("error frame")
    stats.refused(1)
    block(stats)
    assert block(stats) == block(Stats("BTC_USDT", "btc"))


def test_totals_go_on_from_block_to_block() -> None:
    stats = Stats("BTC_USDT", "btc", ["push.deal", "pong"])
    for _ in range(3):
        stats.appended(["t", "d", "d"])
        stats.skipped()
        stats.refused(5)
        stats.error("error frame")
        for channel in ("push.deal", "push.mystery", ""):
            stats.frame(channel)
        block(stats)
    stats.appended(["t"])
    assert stats.totals() == {"t": 4, "d": 6, "skipped": 3, "refused": 15, "errors": 3}
    assert stats.errors == {"error frame": 3}
    assert stats.frames == {"push.deal": 3, "pong": 0, "other": 6}


def test_no_count_is_lost_between_threads_and_blocks() -> None:
    stats = Stats("BTC_USDT", "btc")

    def append() -> None:
        for _ in range(20_000):
            stats.appended("d")

    threads = [threading.Thread(target=append) for _ in range(4)]
    for thread in threads:
        thread.start()
    total = 0
    while any(thread.is_alive() for thread in threads):
        total += int(block(stats)[3].removeprefix("Total Records Appended: "))
    assert total + int(block(stats)[3].removeprefix("Total Records Appended: ")) == 80_000
