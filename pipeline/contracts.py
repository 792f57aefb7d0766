"""What a symbol is traded in: by config.py, else as MEXC said when a collector of it first asked.

In: MEXC's REST ``contract/detail``. Out: sizes and units, and a line where MEXC's are others than config.py's. What was
asked for a symbol that config.py does not know is kept beside the journals, for whoever reads the archive on the same
machine. Of a name that is no contract's, the nearest that are. Promise: whatever REST answers, nothing fails for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from config import PROJECT, Contract, Settings, SymbolConfig
from pipeline.rest import Rest, RestError

_FIELDS = {"size": "contractSize", "price_unit": "priceUnit", "volume_unit": "volUnit"}
UNKNOWN = 1001
"""MEXC's code for a contract that does not exist."""


def known_contract(settings: Settings, config: SymbolConfig) -> Contract | None:
    """Return the contract of a symbol, without asking anybody; None where it is not known here."""
    if config["contract"]:
        return config["contract"]
    with suppress(OSError, ValueError, KeyError, InvalidOperation, TypeError):
        kept = json.loads(_path(settings, config).read_text())
        return _contract({field: kept[name] for name, field in _FIELDS.items()})
    return None


class UnknownContract(Exception):
    """MEXC has no such contract; the text is one line that says so."""


def check_contract(rest: Rest, settings: Settings, config: SymbolConfig) -> str:
    """Ask MEXC for the contract of a symbol; return a line where that is news, and keep it where it was not known.

    Raises UnknownContract.
    """
    symbol = config["symbol"]
    try:
        detail = rest.get("/api/v1/contract/detail", symbol=symbol)
    except RestError as error:
        if error.code == UNKNOWN:
            raise UnknownContract(f"{unknown_contract(symbol)}: {error}") from None
        return ""
    return _compare(detail, settings, config)


def check_contracts(rest: Rest, settings: Settings, configs: Sequence[SymbolConfig]) -> list[str]:
    """Do so for many symbols with one question; return the lines."""
    try:
        details = ask_contracts(rest)
    except RestError:
        return []
    lines = [
        _compare(details[config["symbol"]], settings, config)
        if config["symbol"] in details
        else no_contract(config["symbol"], details)
        for config in configs
    ]
    return [line for line in lines if line]


def ask_contracts(rest: Rest) -> Mapping[str, Any]:
    """Return what MEXC says of each of its contracts, by symbol. Raises RestError."""
    answer = rest.get("/api/v1/contract/detail")
    if not isinstance(answer, list) or not answer:
        raise RestError("MEXC lists no contracts")
    return {str(each.get("symbol")): each for each in answer if isinstance(each, dict)}


def no_contract(symbol: str, known: Iterable[str]) -> str:
    """Return a line that says that a symbol is none of those known to MEXC, and which are nearest to it."""
    by_coin: dict[str, str] = {}
    for each in known:
        by_coin.setdefault(each.partition("_")[0], each)
    coins = get_close_matches(symbol.partition("_")[0], by_coin, cutoff=0.5)
    near = f"; the nearest: {', '.join(by_coin[coin] for coin in coins)}" if coins else ""
    return f"MEXC has no contract {symbol}{near}"


def _compare(detail: Any, settings: Settings, config: SymbolConfig) -> str:
    """Return a line where a contract is not what it is taken for, and keep it where it was not known."""
    symbol = config["symbol"]
    try:
        found = _contract(detail)
    except (ValueError, KeyError, TypeError, InvalidOperation):
        return f"{symbol}: MEXC's answer on its contract cannot be used"
    ours = config["contract"]
    if ours and ours != found:
        changes = (
            f"{_FIELDS[name]} is {there:f}, not {here:f}"
            for name, here, there in zip(Contract._fields, ours, found, strict=True)
            if here != there
        )
        return f"WARNING: MEXC has changed the contract of {symbol}: {', '.join(changes)}; see config.py"
    if not ours:
        path = _path(settings, config)
        with suppress(OSError):
            new = path.with_suffix(".new")
            new.write_text(json.dumps({name: f"{value:f}" for name, value in zip(found._fields, found, strict=True)}))
            new.replace(path)
    return ""


def unknown_contract(symbol: str) -> str:
    """Return how it is said that MEXC has no such contract: it was never there, or is no longer."""
    return f"MEXC does not know {symbol}"


def _contract(detail: Any) -> Contract:
    """Return what an answer says. Raises ValueError, KeyError, TypeError, InvalidOperation where it does not."""
    numbers = [Decimal(detail[field]) for field in _FIELDS.values()]
    if not all(number.is_finite() and number > 0 and abs(number.adjusted()) < 30 for number in numbers):
        raise ValueError("a contract has positive sizes")
    return Contract(*numbers)


def _path(settings: Settings, config: SymbolConfig) -> Path:
    return PROJECT / settings.journal_dir / f"{config['table_name']}.contract.json"
