"""A symbol that the exchange does not know: a typo, or one that was delisted."""

from __future__ import annotations

import re

import pytest

from tests.stack import Process, Stack, eventually

NOPE = """
import sys
from config import symbol_config
from pipeline.collect import feed, intake
feed._HOPELESS = (0.5, 60.0)
intake._PROOF = 2
from pipeline.collect.collector import collect
sys.exit(collect(symbol_config("NOPE_USDT", "btc")))
"""

FLEET = """
import sys
from config import BTC_CONFIG, load_settings, symbol_config
from pipeline.collect import collector, feed
from pipeline.collect.fleet import Fleet
collector._SETUP_TIMEOUT = 1.0
feed._HOPELESS = (0.5, 60.0)
sys.exit(Fleet([BTC_CONFIG, symbol_config("NOPE_USDT", "nope")], load_settings()).run())
"""


def start(stack: Stack) -> Process:
    return stack.start("-c", NOPE)


def test_where_rest_knows_of_no_such_contract_it_ends(running: Stack) -> None:
    running.exchange()
    collector = start(running)
    assert collector.wait() == 2
    assert re.match(r"MEXC does not know NOPE_USDT: .*; give another in SYMBOLS, or config.py$", collector.lines[-1])


@pytest.mark.timeout(300)
def test_where_only_the_websocket_says_so_it_is_unhealthy_and_tries_ever_less_often(running: Stack) -> None:
    exchange = running.exchange()
    exchange.fault("rest-down")
    collector = start(running)
    given_up = r"^Gave up .*: MEXC does not know NOPE_USDT; trying again in (\S+) s$"
    eventually(lambda: len(re.findall(given_up, collector.output, re.MULTILINE)) >= 4, "four tries")
    delays = [float(delay) for delay in re.findall(given_up, collector.output, re.MULTILINE)]
    assert delays[3] > 2 * delays[0]
    health = running.run("-m", "pipeline.collect.health", "btc")
    assert health.wait() == 1
    assert re.match(r"btc: MEXC does not know NOPE_USDT; \d+ rows? waits?$", health.output)
    assert collector.stop() == 0
    dead_letters = running.query("SELECT count() FROM mexc_data.btc")[0][0]
    assert dead_letters <= 3 * len(re.findall("^Gave up", collector.output, re.MULTILINE)) + 3


@pytest.mark.timeout(300)
def test_in_a_fleet_it_is_tried_ever_less_often_and_the_others_go_on(running: Stack) -> None:
    """It has no table: ch_setup.py makes none for it."""
    running.exchange()
    fleet = running.start("-c", FLEET)
    fleet.wait_for("^MEXC has no contract NOPE_USDT; the nearest: ")
    given_up = r"^nope +\| Gave up .*: MEXC does not know NOPE_USDT; trying again in (\S+) s$"
    eventually(lambda: len(re.findall(given_up, fleet.output, re.MULTILINE)) >= 4, "four tries")
    delays = [float(delay) for delay in re.findall(given_up, fleet.output, re.MULTILINE)]
    assert delays[3] > 2 * delays[0]
    assert "ended with" not in fleet.output
    eventually(lambda: running.count("btc") > 20, "the other goes on")
    health = running.run("-m", "pipeline.collect.health", "btc", "nope")
    assert health.wait() == 1
    assert re.match(r"btc: working, .*\nnope: MEXC does not know NOPE_USDT; \d+ rows? waits?$", health.output)
    assert fleet.stop() == 0
