"""What is collected, and settings from the environment, .env and the defaults."""

import uuid
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from config import (
    ALL_CONFIGS,
    BTC_CONFIG,
    ETH_CONFIG,
    SOL_CONFIG,
    ConfigError,
    Contract,
    Settings,
    all_symbols,
    check_identifier,
    choose_symbols,
    load_settings,
    more_symbols,
    origin,
    symbol_config,
)

DEFAULTS = {
    "SYMBOLS": "",
    "MEXC_WS_URL": "wss://contract.mexc.com/edge",
    "CONNECTIONS": 1,
    "MEXC_REST_URL": "https://api.mexc.com",
    "CLICKHOUSE_HOST": "127.0.0.1",
    "CLICKHOUSE_PORT": 9000,
    "CLICKHOUSE_USER": "default",
    "CLICKHOUSE_PASSWORD": "",
    "CLICKHOUSE_SECURE": 0,
    "CLICKHOUSE_CA": "",
    "CLICKHOUSE_DATABASE": "mexc_data",
    "JOURNAL_DIR": "journal",
    "KLINES_DIR": "klines",
    "JOURNAL_MAX_MB": 1024,
    "PING_INTERVAL": 15.0,
    "STATS_INTERVAL": 15.0,
    "LOG_TIME": 0,
    "STALE_TIMEOUT": 60.0,
    "MAX_ERROR_COUNT": 100,
    "FLUSH_INTERVAL": 0.0,
    "MAX_BATCH_ROWS": 10_000,
    "COMPACT_BLOCKS": 50_000,
    "HISTORY": 0,
    "HISTORY_INTERVAL": 5.0,
    "HISTORY_KEEP_DAYS": 0,
    "HISTORY_ENGINE": "MergeTree",
    "HISTORY_HOST": "",
    "HISTORY_PORT": 0,
    "HISTORY_USER": "",
    "HISTORY_PASSWORD": "",
    "HISTORY_SECURE": -1,
    "METRICS_PORT": 0,
    "METRICS_HOST": "127.0.0.1",
}

GIVEN: list[tuple[str, str, str | int | float]] = [
    ("SYMBOLS", "XRP_USDT,DOGE_USDT", "XRP_USDT,DOGE_USDT"),
    ("MEXC_WS_URL", "ws://127.0.0.1:8765/edge", "ws://127.0.0.1:8765/edge"),
    ("CONNECTIONS", "2", 2),
    ("MEXC_REST_URL", "http://127.0.0.1:8766", "http://127.0.0.1:8766"),
    ("CLICKHOUSE_HOST", "clickhouse", "clickhouse"),
    ("CLICKHOUSE_PORT", "9440", 9440),
    ("CLICKHOUSE_USER", "writer", "writer"),
    ("CLICKHOUSE_PASSWORD", " of = and # too ", " of = and # too "),
    ("CLICKHOUSE_SECURE", "1", 1),
    ("CLICKHOUSE_CA", "/etc/ssl/own.pem", "/etc/ssl/own.pem"),
    ("CLICKHOUSE_DATABASE", "Archive_2", "Archive_2"),
    ("JOURNAL_DIR", "/var/lib/journal", "/var/lib/journal"),
    ("KLINES_DIR", "/var/cache/klines", "/var/cache/klines"),
    ("JOURNAL_MAX_MB", "64", 64),
    ("PING_INTERVAL", "12.5", 12.5),
    ("STATS_INTERVAL", "60", 60.0),
    ("LOG_TIME", "1", 1),
    ("STALE_TIMEOUT", "120", 120.0),
    ("MAX_ERROR_COUNT", "3", 3),
    ("FLUSH_INTERVAL", "0.25", 0.25),
    ("MAX_BATCH_ROWS", "500", 500),
    ("COMPACT_BLOCKS", "0", 0),
    ("HISTORY", "1", 1),
    ("HISTORY_INTERVAL", "0.5", 0.5),
    ("HISTORY_KEEP_DAYS", "90", 90),
    ("HISTORY_ENGINE", "ReplicatedMergeTree", "ReplicatedMergeTree"),
    ("HISTORY_HOST", "archive", "archive"),
    ("HISTORY_PORT", "9440", 9440),
    ("HISTORY_USER", "keeper", "keeper"),
    ("HISTORY_PASSWORD", "of it", "of it"),
    ("HISTORY_SECURE", "1", 1),
    ("METRICS_PORT", "9101", 9101),
    ("METRICS_HOST", "0.0.0.0", "0.0.0.0"),
]

UNUSABLE = [
    ("MEXC_WS_URL", "https://contract.mexc.com/edge"),
    ("MEXC_WS_URL", "contract.mexc.com"),
    ("MEXC_WS_URL", "wss:///edge"),
    ("MEXC_WS_URL", "ws://127.0.0.1:port/edge"),
    ("MEXC_WS_URL", "ws://127.0.0.1:99999/edge"),
    ("MEXC_WS_URL", "ws://[::1/edge"),
    ("MEXC_REST_URL", "wss://api.mexc.com"),
    ("MEXC_REST_URL", "api.mexc.com"),
    ("CONNECTIONS", "0"),
    ("CONNECTIONS", "3"),
    ("MEXC_REST_URL", "https://"),
    ("MEXC_REST_URL", "http://127.0.0.1:99999"),
    ("CLICKHOUSE_PORT", "native"),
    ("CLICKHOUSE_PORT", "0"),
    ("CLICKHOUSE_PORT", "65536"),
    ("CLICKHOUSE_SECURE", "yes"),
    ("CLICKHOUSE_DATABASE", "mexc-data"),
    ("CLICKHOUSE_DATABASE", "2mexc"),
    ("CLICKHOUSE_DATABASE", "a; DROP DATABASE b"),
    ("JOURNAL_DIR", "~nobody-is-called-so/x"),
    ("KLINES_DIR", "~nobody-is-called-so/x"),
    ("JOURNAL_MAX_MB", "0"),
    ("JOURNAL_MAX_MB", "1GB"),
    ("PING_INTERVAL", "0"),
    ("PING_INTERVAL", "-15"),
    ("PING_INTERVAL", "nan"),
    ("STATS_INTERVAL", "inf"),
    ("STALE_TIMEOUT", "1 min"),
    ("STALE_TIMEOUT", "60\nseconds"),
    ("MAX_ERROR_COUNT", "0"),
    ("MAX_ERROR_COUNT", "2.5"),
    ("FLUSH_INTERVAL", "-1"),
    ("MAX_BATCH_ROWS", "0"),
    ("MAX_BATCH_ROWS", "1e4"),
    ("COMPACT_BLOCKS", "-1"),
    ("HISTORY", "2"),
    ("HISTORY_ENGINE", "Log"),
    ("HISTORY_ENGINE", "MergeTree ORDER BY n"),
    ("HISTORY_SECURE", "2"),
    ("METRICS_PORT", "-1"),
    ("METRICS_PORT", "65536"),
]


def settings(environ: dict[str, str], dotenv: Path | None = None) -> dict[str, Any]:
    return {name.upper(): value for name, value in asdict(load_settings(environ, dotenv)).items()}


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_without_anything_given_the_defaults_hold(tmp_path: Path) -> None:
    assert settings({}, tmp_path / "there is no such .env") == DEFAULTS
    assert load_settings({}, None) == Settings()


def test_each_setting_is_tried_below() -> None:
    assert [name for name, _, _ in GIVEN] == list(DEFAULTS)


@pytest.mark.parametrize(("name", "text", "value"), GIVEN)
def test_the_environment_overrides_a_default(name: str, text: str, value: str | float) -> None:
    assert settings({name: text}) == DEFAULTS | {name: value}


@pytest.mark.parametrize(("name", "text", "value"), GIVEN)
def test_dotenv_overrides_a_default(name: str, text: str, value: str | float, tmp_path: Path) -> None:
    assert settings({}, write(tmp_path / ".env", f"# mine\n{name}='{text}'\n")) == DEFAULTS | {name: value}


def test_the_environment_wins_over_dotenv(tmp_path: Path) -> None:
    dotenv = write(tmp_path / ".env", "CLICKHOUSE_PORT=9001\nCLICKHOUSE_USER=file\n")
    given = {"CLICKHOUSE_PORT": 9002, "CLICKHOUSE_USER": "file"}
    assert settings({"CLICKHOUSE_PORT": "9002"}, dotenv) == DEFAULTS | given


def test_the_process_environment_is_read_unless_another_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLICKHOUSE_USER", "of the process")
    assert load_settings(dotenv=None).clickhouse_user == "of the process"


@pytest.mark.parametrize("empty", ["", "  "])
@pytest.mark.parametrize("name", DEFAULTS)
def test_an_empty_value_counts_as_not_set(name: str, empty: str, tmp_path: Path) -> None:
    assert settings({name: empty}) == DEFAULTS
    assert settings({}, write(tmp_path / ".env", f"{name}='{empty}'\n")) == DEFAULTS
    assert settings({}, write(tmp_path / ".env", f"{name}\n")) == DEFAULTS


def test_another_file_may_stand_in_for_dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEXC_PIPELINE_ENV", str(write(tmp_path / "mine.env", "CLICKHOUSE_USER=me\n")))
    assert load_settings({}).clickhouse_user == "me"
    assert load_settings({"CLICKHOUSE_USER": "other"}).clickhouse_user == "other"
    assert origin("CLICKHOUSE_USER", {}) == "from mine.env"


def test_another_file_that_is_not_there_is_one_line_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEXC_PIPELINE_ENV", "/nowhere/mine.env")
    with pytest.raises(ConfigError, match=r"^MEXC_PIPELINE_ENV=/nowhere/mine\.env is not there: give .*$"):
        load_settings({})


def test_an_empty_variable_does_not_hide_what_dotenv_says(tmp_path: Path) -> None:
    dotenv = write(tmp_path / ".env", "CLICKHOUSE_PASSWORD=secret\n")
    assert settings({"CLICKHOUSE_PASSWORD": ""}, dotenv)["CLICKHOUSE_PASSWORD"] == "secret"


def test_other_variables_are_nobodys_business(tmp_path: Path) -> None:
    dotenv = write(tmp_path / ".env", "NORDVPN_USER=me\n")
    assert settings({"PATH": "/bin", "ping_interval": "3"}, dotenv) == DEFAULTS


@pytest.mark.parametrize(("name", "text"), UNUSABLE)
def test_an_unusable_value_is_one_line_that_names_it(name: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings({name: text}, None)
    said = str(caught.value)
    assert said.startswith(f"{name}={' '.join(text.split())} ")
    assert len(said.splitlines()) == 1
    with pytest.raises(ConfigError, match=rf"^{name}="):
        load_settings({}, write(tmp_path / ".env", f'{name}="{text}"\n'))


def test_a_value_out_of_range_is_told_the_range() -> None:
    with pytest.raises(ConfigError, match=r"^MAX_ERROR_COUNT=0 is out of range: 1 to 1000000000$"):
        load_settings({"MAX_ERROR_COUNT": "0"}, None)
    with pytest.raises(ConfigError, match=r"^PING_INTERVAL=0 is out of range: 0.001 to 1000000000$"):
        load_settings({"PING_INTERVAL": "0"}, None)


@pytest.mark.parametrize("text", ["~/x", "~"])
def test_a_tilde_is_the_home_folder(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert load_settings({"JOURNAL_DIR": text}, None).journal_dir == text.replace("~", "/home/me")


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffCLICKHOUSE_PORT=9001\nCLICKHOUSE_USER=a",
        "CLICKHOUSE_PORT=9001 # note\r\nCLICKHOUSE_USER='a'\r\nJOURNAL_DIR=''\r\nCLICKHOUSE_PASSWORD=   # note",
    ],
)
def test_dotenv_is_read_whatever_editor_wrote_it(text: str, tmp_path: Path) -> None:
    found = settings({}, write(tmp_path / ".env", text))
    assert found == DEFAULTS | {"CLICKHOUSE_PORT": 9001, "CLICKHOUSE_USER": "a"}


def test_a_dotenv_that_is_no_text_is_one_line_that_names_it(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"CLICKHOUSE_PASSWORD=\xff\n")
    with pytest.raises(ConfigError, match=r"^\S+/\.env cannot be read: [^\n]+$"):
        load_settings({}, tmp_path / ".env")


def test_the_three_symbols_have_their_tables_and_directories() -> None:
    assert [BTC_CONFIG, ETH_CONFIG, SOL_CONFIG] == ALL_CONFIGS
    assert [(config["symbol"], config["table_name"], config["uuid"][:3]) for config in ALL_CONFIGS] == [
        ("BTC_USDT", "btc", "b7c"),
        ("ETH_USDT", "eth", "e74"),
        ("SOL_USDT", "sol", "507"),
    ]
    for config in ALL_CONFIGS:
        assert str(uuid.UUID(config["uuid"])) == config["uuid"]


@pytest.mark.parametrize("config", ALL_CONFIGS, ids=lambda config: config["symbol"])
def test_each_symbol_subscribes_as_mexc_takes_it(config: dict[str, Any]) -> None:
    symbol = config["symbol"]
    assert config["subscriptions"] == [
        {"method": "sub.ticker", "param": {"symbol": symbol}},
        {"method": "sub.deal", "param": {"symbol": symbol, "compress": False}},
        {"method": "sub.depth.full", "param": {"symbol": symbol, "limit": 20}},
    ]


def test_the_contracts_are_known_of_the_three_and_of_no_other_until_it_is_said() -> None:
    found = {config["table_name"]: config["contract"] for config in ALL_CONFIGS}
    assert found == {
        "btc": Contract(Decimal("0.0001"), Decimal("0.1"), Decimal(1)),
        "eth": Contract(Decimal("0.01"), Decimal("0.01"), Decimal(1)),
        "sol": Contract(Decimal("0.1"), Decimal("0.01"), Decimal(1)),
    }
    assert symbol_config("XRP_USDT", "xrp")["contract"] is None


def test_a_symbol_without_a_uuid_gets_one_of_its_own_that_stays() -> None:
    xrp = symbol_config("XRP_USDT", "xrp")["uuid"]
    assert xrp == "aff7382a-924a-594c-9264-3f50169f36ee"
    assert xrp == symbol_config("XRP_USDT", "xrp")["uuid"]
    assert xrp not in {symbol_config("ADA_USDT", "ada")["uuid"], *(config["uuid"] for config in ALL_CONFIGS)}


@pytest.mark.parametrize("name", ["btc", "_1", "X9"])
def test_a_name_that_can_stand_in_sql_is_taken(name: str) -> None:
    check_identifier("table_name", name)


@pytest.mark.parametrize("name", ["", "1btc", "b-tc", "btc ", "b.tc", "btc\n", "bté"])
def test_a_name_that_cannot_stand_in_sql_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^table_name="):
        check_identifier("table_name", name)


def test_where_a_setting_is_from_can_be_said(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("CLICKHOUSE_PASSWORD=secret\nCLICKHOUSE_USER=\n")
    assert origin("CLICKHOUSE_PASSWORD", {}, dotenv) == "from .env"
    assert origin("CLICKHOUSE_PASSWORD", {"CLICKHOUSE_PASSWORD": "other"}, dotenv) == "from the environment"
    assert origin("CLICKHOUSE_USER", {"CLICKHOUSE_USER": " "}, dotenv) == "the default"


@pytest.mark.parametrize(
    ("symbol", "table"),
    [
        ("XRP_USDT", "xrp"),
        ("BTC_USDC", "btc_usdc"),
        ("BTC_USD", "btc_usd"),
        ("1000PEPE_USDT", "_1000pepe"),
        ("1INCH_USDC", "_1inch_usdc"),
        ("ALL_USDT", "_all"),
    ],
)
def test_a_table_is_named_after_its_coin_and_can_stand_in_sql(symbol: str, table: str) -> None:
    (config,) = more_symbols(Settings(symbols=symbol))
    assert (config["symbol"], config["table_name"]) == (symbol, table)
    check_identifier("table_name", config["table_name"])


@pytest.mark.parametrize("text", ["XRP_USDT,DOGE_USDT", " xrp_usdt, Doge_usdt ,", "XRP_USDT DOGE_USDT\nXRP_USDT"])
def test_symbols_are_added_each_once_after_those_of_config(text: str) -> None:
    settings = Settings(symbols=text)
    assert [config["symbol"] for config in more_symbols(settings)] == ["XRP_USDT", "DOGE_USDT"]
    assert all_symbols(settings)[:3] == ALL_CONFIGS
    assert more_symbols(Settings(symbols=f"{text},BTC_USDT")) == more_symbols(settings), "that is btcdat.py's"


def test_a_symbol_whose_table_is_anothers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("config.ALL_CONFIGS", [symbol_config("FOO_USDT", "xrp")])
    text = "^SYMBOLS: XRP_USDT would have the table xrp, which is that of FOO_USDT in config.py$"
    with pytest.raises(ConfigError, match=text):
        load_settings({"SYMBOLS": "XRP_USDT"}, None)


def test_symbols_are_chosen_by_either_name() -> None:
    configs = all_symbols(Settings(symbols="XRP_USDT"))
    assert [config["table_name"] for config in choose_symbols(["XRP_usdt", "btc", "xrp"], configs)] == ["btc", "xrp"]
    with pytest.raises(ConfigError, match=r"^There is no symbol doge in config.py or SYMBOLS: give some of btc \(BTC_"):
        choose_symbols(["btc", "doge"], configs)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("DOGE_USDT,XRP", "XRP is not the name of a contract: give such as XRP_USDT,DOGE_USDT"),
        ("XRP_USDT;DOGE_USDT", "XRP_USDT;DOGE_USDT is not the name of a contract: give such as XRP_USDT,DOGE_USDT"),
        ("XRP_USDT_SWAP", "XRP_USDT_SWAP is not the name of a contract: give such as XRP_USDT,DOGE_USDT"),
        ("DOGE_USDT,币安人生_USDT", "币安人生_USDT has no name for its table: give it one in config.py"),
    ],
)
def test_the_name_of_many_that_cannot_be_used_is_said(text: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings({"SYMBOLS": text}, None)
    assert str(caught.value) == f"SYMBOLS: {what}"
