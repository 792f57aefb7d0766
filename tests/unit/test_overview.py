"""The report on many symbols: what is amiss comes first."""

from __future__ import annotations

from pipeline.show.overview import tiers_overview
from pipeline.store.tiers import Tier, Tiers


def test_histories_that_lack_rows_come_first_with_a_line_each() -> None:
    histories = {name: Tier(f"{name}_history", 5, 100, 1_788_335_242_156, 1_788_335_243_156) for name in "abc"}
    tiers = [
        Tiers("a", None, histories["a"], ""),
        Tiers("b", None, histories["b"], "", behind="b_history is 3 rows behind b"),
        Tiers("c", None, histories["c"], "c_history has not begun"),
    ]
    lines = tiers_overview(tiers).splitlines()
    assert lines[3:5] == ["  b_history is 3 rows behind b", "  c_history has not begun"]
    assert [line.split()[0] for line in lines[-3:]] == ["b_history", "c_history", "a_history"]
