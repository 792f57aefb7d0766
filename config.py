"""What is collected, and every setting. A new symbol is a name in SYMBOLS, or is added in this file; nowhere else.

A setting's environment variable is its name in capitals: ``ping_interval`` is PING_INTERVAL. Where it is set
more than once, the environment wins over ``.env``, and ``.env`` over the default below. MEXC_PIPELINE_ENV names
another file than ``.env``.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, TypedDict
from urllib.parse import urlsplit

from dotenv import dotenv_values

PROJECT = Path(__file__).resolve().parent


class ConfigError(ValueError):
    """A setting or a symbol that cannot be used; its text is one line that names it and says what to do."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.split()))  # a value of .env may have lines


class Subscription(TypedDict):
    """A subscription request as MEXC takes it: ``{"method": "sub.deal", "param": {"symbol": ..., ...}}``."""

    method: str
    param: dict[str, Any]


class Contract(NamedTuple):
    """What a symbol is traded in: `contractSize`, `priceUnit` and `volUnit` of MEXC's REST ``contract/detail``."""

    size: Decimal  # coins
    price_unit: Decimal  # USDT
    volume_unit: Decimal  # contracts


class SymbolConfig(TypedDict):
    """One collected symbol: MEXC's name for it, its contract, its ClickHouse table and that table's fixed UUID."""

    symbol: str
    table_name: str
    uuid: str
    contract: Contract | None  # None: not known
    subscriptions: list[Subscription]


def symbol_config(
    symbol: str, table_name: str, table_uuid: str | None = None, contract: Contract | None = None
) -> SymbolConfig:
    """Return the configuration that subscribes `symbol` to tickers, deals and 20 levels of depth.

    The table's UUID fixes where ClickHouse keeps its data: ``store/<its first three digits>/<uuid>/data.bin``.
    Without one, it follows from the table's name and so stays the same from run to run.
    """
    return {
        "symbol": symbol,
        "table_name": table_name,
        "uuid": table_uuid or str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{table_name}.contract.mexc.com")),
        "contract": contract,
        "subscriptions": [
            {"method": "sub.ticker", "param": {"symbol": symbol}},
            # By default MEXC merges deals (since 2025-08-21); the archive wants each one.
            {"method": "sub.deal", "param": {"symbol": symbol, "compress": False}},
            {"method": "sub.depth.full", "param": {"symbol": symbol, "limit": 20}},
        ],
    }


_BTC = Contract(Decimal("0.0001"), Decimal("0.1"), Decimal(1))
_ETH = Contract(Decimal("0.01"), Decimal("0.01"), Decimal(1))
_SOL = Contract(Decimal("0.1"), Decimal("0.01"), Decimal(1))

BTC_CONFIG = symbol_config("BTC_USDT", "btc", "b7c4f1d2-6a39-4e58-9c07-2d81f5ab3e60", _BTC)
ETH_CONFIG = symbol_config("ETH_USDT", "eth", "e742c9a8-15fb-4d03-8b6e-70a94cd1f235", _ETH)
SOL_CONFIG = symbol_config("SOL_USDT", "sol", "507ae3b6-c82d-4f91-a45b-9e16d04f7c8a", _SOL)

ALL_CONFIGS = [BTC_CONFIG, ETH_CONFIG, SOL_CONFIG]


_TAKEN = ("all",)  # what stands for all symbols on a command line


def table_of(symbol: str) -> str:
    """Return the name of a symbol's table: its coin's, `xrp`; the whole, `btc_usdc`, where it is not paid in USDT.

    One that could not stand so in SQL, or on a command line, has a _ before it: `_1000pepe`, `_all`.
    """
    coin, _, quote = symbol.lower().partition("_")
    name = coin if quote == "usdt" else symbol.lower()
    return f"_{name}" if name[0].isdigit() or name in _TAKEN else name


def more_symbols(settings: Settings) -> list[SymbolConfig]:
    """Return the symbols that SYMBOLS adds to those above, in its order. Raises ConfigError."""
    known = {config["symbol"] for config in ALL_CONFIGS}
    tables = {config["table_name"]: config["symbol"] for config in ALL_CONFIGS}
    more = []
    for name in dict.fromkeys(re.split(r"[,\s]+", settings.symbols.strip(", \n").upper())):
        if not name or name in known:
            continue
        if not re.fullmatch(r"[^\W_]+_[^\W_]+", name):
            raise ConfigError(f"SYMBOLS: {name} is not the name of a contract: give such as XRP_USDT,DOGE_USDT")
        if not name.isascii():
            raise ConfigError(f"SYMBOLS: {name} has no name for its table: give it one in config.py")
        table = table_of(name)
        if other := tables.get(table):
            raise ConfigError(f"SYMBOLS: {name} would have the table {table}, which is that of {other} in config.py")
        more.append(symbol_config(name, table))
    return more


def all_symbols(settings: Settings) -> list[SymbolConfig]:
    """Return all symbols, those of SYMBOLS last. Raises ConfigError."""
    return [*ALL_CONFIGS, *more_symbols(settings)]


def find_symbol(name: str, configs: Sequence[SymbolConfig] | None = None) -> SymbolConfig | None:
    """Return the symbol that `name` is the name of, or that of its table, in whatever case; None if there is none.

    `configs` are those to look among; without them, those above.
    """
    for config in ALL_CONFIGS if configs is None else configs:
        if name.lower() in (config["symbol"].lower(), config["table_name"].lower()):
            return config
    return None


def choose_symbols(names: Sequence[str], configs: Sequence[SymbolConfig]) -> list[SymbolConfig]:
    """Return those of `configs` that `names` are of, each once, in their order. Raises ConfigError for one of none."""
    found = [find_symbol(name, configs) for name in names]
    for name, config in zip(names, found, strict=True):
        if config is None:
            raise ConfigError(
                f"There is no symbol {name} in config.py or SYMBOLS: give some of {known_symbols(configs)}"
            )
    return [config for config in configs if config in found]


def known_symbols(configs: Sequence[SymbolConfig]) -> str:
    """Return symbols by both their names, for a line that says what to give."""
    return ", ".join(f"{config['table_name']} ({config['symbol']})" for config in configs)


@dataclass(frozen=True)
class Settings:
    """The defaults; `load_settings` lays the environment and ``.env`` over them."""

    symbols: str = ""  # those that collect.py collects besides the ones above, such as XRP_USDT,DOGE_USDT
    mexc_ws_url: str = "wss://contract.mexc.com/edge"
    connections: int = 1  # WebSockets of each symbol; 2: where one is down, the other goes on
    mexc_rest_url: str = "https://api.mexc.com"  # where that does not answer, the WebSocket's host is asked
    clickhouse_host: str = "127.0.0.1"
    clickhouse_port: int = 9000  # the native protocol, not HTTP
    clickhouse_user: str = "default"
    clickhouse_password: str = ""
    clickhouse_secure: int = 0  # 1: within TLS, as ClickHouse speaks it on port 9440
    clickhouse_ca: str = ""  # a file of certificates to trust; empty: those of well-known authorities
    clickhouse_database: str = "mexc_data"
    journal_dir: str = "journal"  # relative to the project's folder
    klines_dir: str = "klines"  # where MEXC's klines are kept once they were asked for; relative to the same
    journal_max_mb: int = 1024  # beyond that, the oldest rows stay and new ones are lost
    ping_interval: float = 15.0  # seconds; MEXC closes a connection after 60 s without a ping
    stats_interval: float = 15.0  # seconds between two statistics blocks
    log_time: int = 0  # 1: each line of a collector begins with its time, unless it goes to a terminal
    stale_timeout: float = 60.0  # seconds without market data, after which to connect anew
    max_error_count: int = 100  # consecutive errors of one kind, after which to exit with code 1
    flush_interval: float = 0.0  # seconds that rows may wait to share an INSERT; 0 sends each at once
    max_batch_rows: int = 10_000  # most rows of one INSERT when catching up
    compact_blocks: int = 50_000  # small blocks, after which a collector rewrites its table into big ones; 0: never
    history: int = 0  # 1: all rows go into a second table as well, where a range of time costs what is in it
    history_interval: float = 5.0  # seconds that rows may wait to share an INSERT into it
    history_keep_days: int = 0  # days after which a month of it is dropped; 0: never
    history_engine: str = "MergeTree"  # of its table; any of that family, with its arguments
    history_host: str = ""  # where it is; empty, and 0, and -1 below: where the other tables are
    history_port: int = 0
    history_user: str = ""
    history_password: str = ""
    history_secure: int = -1
    metrics_port: int = 0  # where a collector serves Prometheus; 0: nowhere
    metrics_host: str = "127.0.0.1"  # the address of this machine to serve it at


def load_settings(environ: Mapping[str, str] | None = None, dotenv: Path | None = PROJECT / ".env") -> Settings:
    """Return the settings of this run.

    `environ` is the process environment unless given; `dotenv` is a file that need not exist, or None. An empty
    value counts as not set. Raises ConfigError for a value that cannot be used.
    """
    sources = (os.environ if environ is None else environ, _read_dotenv(dotenv))
    given: dict[str, Any] = {}
    for field in fields(Settings):
        name = field.name.upper()
        text = next((source[name] for source in sources if source.get(name, "").strip()), None)
        if text is not None:
            given[field.name] = _convert(name, text, type(field.default), _LIMITS.get(field.name, _SECONDS))
    settings = Settings(**given)
    if not _is_address(settings.mexc_ws_url, "ws", "wss"):
        raise ConfigError(f"MEXC_WS_URL={settings.mexc_ws_url} is not a WebSocket address: wss://host/path")
    if not _is_address(settings.mexc_rest_url, "http", "https"):
        raise ConfigError(f"MEXC_REST_URL={settings.mexc_rest_url} is not a web address: https://host")
    check_identifier("CLICKHOUSE_DATABASE", settings.clickhouse_database)
    if not re.fullmatch(r"[A-Za-z]*MergeTree(\([^()]*\))?", settings.history_engine):
        raise ConfigError(
            f"HISTORY_ENGINE={settings.history_engine} is no engine for it: MergeTree, or ReplicatedMergeTree('/path',"
            " 'replica')"
        )
    more_symbols(settings)
    return replace(
        settings,
        journal_dir=_expand_home("JOURNAL_DIR", settings.journal_dir),
        klines_dir=_expand_home("KLINES_DIR", settings.klines_dir),
    )


def origin(name: str, environ: Mapping[str, str] | None = None, dotenv: Path | None = PROJECT / ".env") -> str:
    """Return in words where the setting `name` has its value from, by the same rules as `load_settings`."""
    if (os.environ if environ is None else environ).get(name, "").strip():
        return "from the environment"
    if dotenv and _read_dotenv(dotenv).get(name, "").strip():
        return f"from {_chosen(dotenv).name}"
    return "the default"


def check_identifier(what: str, name: str) -> None:
    """Raise ConfigError unless `name` can stand in SQL as it is; `what` is what the user knows it by."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ConfigError(f"{what}={name} cannot be used: give letters, digits and _, not beginning with a digit")


def _read_dotenv(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    path = _chosen(path)
    try:
        return {name: value or "" for name, value in dotenv_values(path).items()}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None


def _chosen(path: Path) -> Path:
    """Return the file to read for `path`: in place of the project's ``.env``, the one that MEXC_PIPELINE_ENV names."""
    named = os.environ.get("MEXC_PIPELINE_ENV", "").strip()
    if not named or path != PROJECT / ".env":
        return path
    other = Path(_expand_home("MEXC_PIPELINE_ENV", named))
    if not other.is_file():
        raise ConfigError(f"MEXC_PIPELINE_ENV={named} is not there: give the path of a file, or nothing for .env")
    return other


def _expand_home(name: str, path: str) -> str:
    """Return the path with ~ as a shell takes it, which has not seen what is in ``.env``."""
    try:
        return str(Path(path).expanduser())
    except RuntimeError as error:
        raise ConfigError(f"{name}={path} cannot be used: {error}") from None


def _is_address(url: str, *schemes: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port, or an IPv6 address
        return False


_SECONDS = (1e-3, 1e9)
_LIMITS = {
    "connections": (1, 2),
    "clickhouse_port": (1, 65535),
    "clickhouse_secure": (0, 1),
    "journal_max_mb": (1, 1e9),
    "log_time": (0, 1),
    "max_error_count": (1, 1e9),
    "flush_interval": (0, 3600),
    "max_batch_rows": (1, 1e6),
    "compact_blocks": (0, 1e9),
    "history": (0, 1),
    "history_interval": (0, 3600),
    "history_keep_days": (0, 36_500),
    "history_port": (0, 65535),
    "history_secure": (-1, 1),
    "metrics_port": (0, 65535),
}


def _convert(name: str, text: str, kind: type, limits: tuple[float, float]) -> str | int | float:
    if kind is str:
        return text
    low, high = limits
    try:
        value = int(text) if kind is int else float(text)
    except ValueError:
        raise ConfigError(f"{name}={text} is not a {'whole ' if kind is int else ''}number") from None
    if not low <= value <= high:  # false for nan, too
        raise ConfigError(f"{name}={text} is out of range: {low:.15g} to {high:.15g}")
    return value
