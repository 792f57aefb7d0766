"""The delays between two tries."""

from itertools import islice

from pipeline.collect.backoff import backoff


def test_the_first_try_is_at_once_and_the_others_double_up_to_a_minute() -> None:
    assert list(islice(backoff(jitter=lambda: 0.0), 9)) == [0, 1, 2, 4, 8, 16, 32, 60, 60]


def test_jitter_takes_up_to_a_half_of_each_delay() -> None:
    assert list(islice(backoff(jitter=lambda: 1.0), 9)) == [0, 0.5, 1, 2, 4, 8, 16, 30, 30]


def test_collectors_that_lost_the_same_server_do_not_come_back_in_step() -> None:
    runs = [tuple(islice(backoff(), 8)) for _ in range(20)]
    assert len(set(runs)) == 20
    for run in runs:
        for delay, longest in zip(run, (0, 1, 2, 4, 8, 16, 32, 60), strict=True):
            assert longest / 2 <= delay <= longest
