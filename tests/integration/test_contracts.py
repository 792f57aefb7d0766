"""What a symbol is traded in, by config.py or by the exchange."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from config import BTC_CONFIG, Contract, Settings, load_settings, symbol_config
from pipeline.contracts import UnknownContract, check_contract, check_contracts, known_contract, no_contract
from pipeline.rest import Rest
from tests.stack import Exchange, Stack


@pytest.fixture
def exchange(stack: Stack) -> Exchange:
    return stack.exchange()


@pytest.fixture
def settings(stack: Stack, exchange: Exchange, tmp_path: Path) -> Settings:
    environ = stack.env | {"MEXC_REST_URL": exchange.rest, "MEXC_WS_URL": exchange.url}
    return replace(load_settings(environ, dotenv=None), journal_dir=str(tmp_path))


def test_what_is_as_it_was_is_no_news(settings: Settings) -> None:
    assert check_contract(Rest(settings), settings, BTC_CONFIG) == ""
    assert known_contract(settings, BTC_CONFIG) == BTC_CONFIG["contract"]


def test_a_contract_that_mexc_has_changed_is_said(settings: Settings) -> None:
    ours = Contract(Decimal("0.001"), Decimal("0.1"), Decimal(1))
    line = check_contract(Rest(settings), settings, {**BTC_CONFIG, "contract": ours})
    assert line == (
        "WARNING: MEXC has changed the contract of BTC_USDT: contractSize is 0.0001, not 0.001; see config.py"
    )


def test_one_that_config_does_not_know_is_asked_for_and_kept(settings: Settings) -> None:
    config = {**BTC_CONFIG, "contract": None}
    assert known_contract(settings, config) is None  # type: ignore[arg-type]
    assert check_contract(Rest(settings), settings, config) == ""  # type: ignore[arg-type]
    assert known_contract(settings, config) == BTC_CONFIG["contract"]  # type: ignore[arg-type]
    (path,) = Path(settings.journal_dir).glob("*.contract.json")
    path.write_text('{"size": "NaN"}')
    assert known_contract(settings, config) is None  # type: ignore[arg-type]


def test_a_symbol_that_mexc_does_not_know_is_said(settings: Settings) -> None:
    with pytest.raises(UnknownContract, match=r"^MEXC does not know NOPE_USDT: "):
        check_contract(Rest(settings), settings, symbol_config("NOPE_USDT", "nope"))


@pytest.mark.parametrize("fault", ["rest-down", "rest-login", "rest-half", "rest-html", "rest-error"])
def test_an_exchange_that_cannot_be_asked_is_no_news(settings: Settings, exchange: Exchange, fault: str) -> None:
    exchange.fault(fault)
    assert check_contract(Rest(settings), settings, BTC_CONFIG) == ""


def test_a_collector_says_it(running: Stack, exchange: Exchange) -> None:
    code = """
import sys
from decimal import Decimal
from config import BTC_CONFIG
from pipeline.collect.collector import collect
contract = BTC_CONFIG["contract"]._replace(size=Decimal(7))
sys.exit(collect({**BTC_CONFIG, "contract": contract}))
"""
    collector = running.start("-c", code, MEXC_WS_URL=exchange.url, MEXC_REST_URL=exchange.rest)
    collector.wait_for(
        "^WARNING: MEXC has changed the contract of BTC_USDT: contractSize is 0.0001, not 7; see config.py$"
    )
    assert collector.stop() == 0


def test_many_are_asked_for_at_once(settings: Settings, exchange: Exchange) -> None:
    configs = [BTC_CONFIG, symbol_config("XPR_USDT", "xpr"), symbol_config("DOGE_USDT", "doge")]
    (line,) = check_contracts(Rest(settings), settings, configs)
    assert line.startswith("MEXC has no contract XPR_USDT; the nearest: XRP_USDT")
    assert known_contract(settings, configs[2]) == Contract(Decimal(100), Decimal("0.00001"), Decimal(1))
    exchange.fault("rest-down")
    assert check_contracts(Rest(settings), settings, configs) == []


@pytest.mark.parametrize(
    ("symbol", "near"),
    [
        ("PEPE_USDT", "; the nearest: 1000PEPE_USDT"),
        ("BTC_USTD", "; the nearest: BTC_USDT"),
        ("NOTHINGLIKEIT_USDT", ""),
    ],
)
def test_the_nearest_are_told_by_the_coin(symbol: str, near: str) -> None:
    line = no_contract(symbol, ["BTC_USDT", "BTC_USD", "ETH_USDT", "1000PEPE_USDT"])
    assert line == f"MEXC has no contract {symbol}{near}"
