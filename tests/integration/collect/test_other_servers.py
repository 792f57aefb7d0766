"""ClickHouse and the history behind TLS, a slow line and a line that dies: rows wait, and all arrive once.

TLS is stunnel's, with certificates that openssl makes.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.messages import parse_frame
from tests.disks import small_disks
from tests.proxy import open_proxy
from tests.stack import Exchange, Process, Stack, StoredRow, eventually, free_port, open_stack

REFUSED = {
    "of somebody else": "certificate verify failed: self-signed certificate",
    "of another host": "certificate verify failed: ip address mismatch, certificate is not valid for '127.0.0.1'.",
    "expired": "certificate verify failed: certificate has expired",
}


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with open_stack(tmp_path) as opened:
        opened.env["HISTORY"] = "1"
        opened.env["HISTORY_INTERVAL"] = "1"
        opened.clickhouse()
        opened.setup()
        yield opened


def expected(exchange: Exchange) -> list[StoredRow]:
    rows = [row for raw in exchange.sent("BTC_USDT") for row in parse_frame(raw, "BTC_USDT", 0).rows]
    return [(row.ts_ms, row.mt, row.m) for row in rows]


def in_history(stack: Stack) -> list[StoredRow]:
    query = "SELECT toUnixTimestamp64Milli(ts), toString(mt), m FROM mexc_data.btc_history ORDER BY n"
    return [tuple(row) for row in stack.query(query)]


def grows(stack: Stack) -> None:
    """Wait until btc has another row."""
    before = stack.count()
    eventually(lambda: stack.count() > before, "another row")


def assert_all_once(stack: Stack, other: Stack, exchange: Exchange, collector: Process) -> None:
    """Wait until btc, and the history at `other`, have all that the exchange sent; they have it once and in order."""
    exchange.process.stop()
    rows = expected(exchange)
    eventually(lambda: len(in_history(other)) >= len(rows) <= stack.count(), "all rows in both tables")
    assert in_history(other) == stack.rows() == rows
    assert collector.stop() == 0
    assert "Traceback" not in collector.output


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of certificates with their keys, and ca.pem, which vouches for all but one of them."""
    directory = tmp_path_factory.mktemp("certificates")

    def openssl(*command: str) -> None:
        subprocess.run(["openssl", *command], cwd=directory, check=True, capture_output=True)

    def make(name: str, address: str) -> None:
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key"]
        named = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=IP:{address}"]
        openssl("req", "-x509", *key, "-days", "2", *named, "-out", f"{name}.crt")

    make("good", "127.0.0.1")
    make("of somebody else", "127.0.0.1")
    make("of another host", "192.0.2.1")
    make("expired", "127.0.0.1")
    openssl("x509", "-in", "expired.crt", "-signkey", "expired.key", "-days", "-1", "-out", "over.crt")
    (directory / "over.crt").replace(directory / "expired.crt")
    trusted = [(directory / f"{name}.crt").read_text() for name in ("good", "of another host", "expired")]
    (directory / "ca.pem").write_text("".join(trusted))
    return directory


@contextmanager
def within_tls(stack: Stack, certificates: Path, name: str, port: int) -> Iterator[None]:
    """Let stunnel lead from within TLS at `port` to ClickHouse, with the certificate of that name."""
    pem = stack.directory / "stunnel.pem"
    pem.write_text("".join((certificates / f"{name}.{kind}").read_text() for kind in ("key", "crt")))
    pem.chmod(0o600)
    config = stack.directory / "stunnel.conf"
    config.write_text(
        f"foreground = yes\npid =\n[clickhouse]\naccept = 127.0.0.1:{port}\nconnect = 127.0.0.1:{stack.port}\n"
        f"cert = {pem}\n"
    )
    with (stack.directory / "stunnel.log").open("w") as log:
        tunnel = subprocess.Popen(["stunnel4", config], stdout=log, stderr=log)
        try:
            yield
        finally:
            tunnel.terminate()
            tunnel.wait()


@pytest.mark.stunnel
@pytest.mark.parametrize("name", REFUSED)
def test_tls_to_clickhouse(stack: Stack, certificates: Path, name: str) -> None:
    exchange, port = stack.exchange("--rate", 50), free_port()
    stack.env |= {"CLICKHOUSE_SECURE": "1", "CLICKHOUSE_CA": str(certificates / "ca.pem")}
    with within_tls(stack, certificates, name, port):
        collector = stack.collector(CLICKHOUSE_PORT=port)
        where = f"ClickHouse at 127.0.0.1:{port} cannot be reached"
        collector.wait_for(f"^{where}: {REFUSED[name]}; [0-9,]+ rows? waits?$")
        collector.wait_for("^Waiting in journal: [1-9][0-9]+$")
        assert stack.count() == 0
    with within_tls(stack, certificates, "good", port):
        collector.wait_for("^ClickHouse takes rows again; ")
        assert_all_once(stack, stack, exchange, collector)


@pytest.mark.stunnel
@pytest.mark.parametrize("name", REFUSED)
def test_tls_to_the_history_alone(stack: Stack, certificates: Path, name: str) -> None:
    exchange, port = stack.exchange("--rate", 50), free_port()
    stack.env |= {"HISTORY_SECURE": "1", "CLICKHOUSE_CA": str(certificates / "ca.pem")}
    with within_tls(stack, certificates, name, port):
        collector = stack.collector(HISTORY_PORT=port)
        where = f"ClickHouse at 127.0.0.1:{port} cannot be reached"
        collector.wait_for(f"^{where}: {REFUSED[name]}; [0-9,]+ rows? waits?$")
        grows(stack)
        assert in_history(stack) == []
    with within_tls(stack, certificates, "good", port):
        collector.wait_for("^mexc_data.btc_history takes rows again; ")
        assert_all_once(stack, stack, exchange, collector)


# A long line


def test_a_line_to_the_history_that_is_slow_and_dies(stack: Stack) -> None:
    exchange = stack.exchange("--rate", 50)
    with open_proxy(stack.port, delay=0.05) as proxy:  # on the way there and back: 100 ms
        collector = stack.collector(HISTORY_PORT=proxy.port)
        eventually(lambda: len(in_history(stack)) > 0, "rows in the history")
        for _ in range(3):
            proxy.cut_after("to server", 1000)
            eventually(lambda: proxy.cuts > 0, "an INSERT that is cut")
            proxy.cuts = 0
            with proxy.refusing():
                collector.wait_for(f"^ClickHouse at 127.0.0.1:{proxy.port} .*; [0-9,]+ rows? waits?$")
                grows(stack)
            before = len(in_history(stack))
            eventually(lambda before=before: len(in_history(stack)) > before, "rows in the history again")  # type: ignore[misc]
        collector.wait_for("^mexc_data.btc_history takes rows again; ")
        assert_all_once(stack, stack, exchange, collector)


# What another server lets happen


@contextmanager
def history_elsewhere(stack: Stack, directory: Path) -> Iterator[Stack]:
    """Give another server, with a password of its own, and have the stack's history there."""
    directory.mkdir(exist_ok=True)
    with open_stack(directory) as other:
        other.env["CLICKHOUSE_PASSWORD"] = "of the other"
        other.prefix = stack.prefix
        other.clickhouse()
        stack.env |= {"HISTORY_PORT": str(other.port), "HISTORY_PASSWORD": "of the other"}
        stack.setup()
        yield other


def test_a_wrong_password_of_the_other_server(stack: Stack, tmp_path: Path) -> None:
    exchange = stack.exchange("--rate", 50)
    with history_elsewhere(stack, tmp_path / "other") as other:
        collector = stack.collector(HISTORY_PASSWORD="another")
        line = (
            f"ClickHouse at 127.0.0.1:{other.port} refuses user default: check HISTORY_USER \\(the default\\)"
            " and HISTORY_PASSWORD \\(from the environment\\)"
        )
        collector.wait_for(f"^{line}; [0-9,]+ rows? waits?$")
        grows(stack)
        other.processes[0].stop()
        other.env["CLICKHOUSE_PASSWORD"] = "another"
        other.clickhouse()
        collector.wait_for("^mexc_data.btc_history takes rows again; ")
        assert_all_once(stack, other, exchange, collector)


def test_a_full_disk_of_the_other_server(stack: Stack, tmp_path: Path) -> None:
    exchange, directory = stack.exchange("--rate", 50), tmp_path / "other"
    with small_disks("128m", directory / "clickhouse") as disks:
        stack.prefix = disks.prefix
        with history_elsewhere(stack, directory) as other:
            collector = stack.collector()
            eventually(lambda: len(in_history(other)) > 0, "rows in the history")
            with disks.full(other.data):
                line = f"ClickHouse at 127.0.0.1:{other.port} reports error 243: Cannot insert: 0 MiB are free"
                collector.wait_for(f"^{line} .*; [0-9,]+ rows? waits?$")
                grows(stack)
            collector.wait_for("^mexc_data.btc_history takes rows again; ")
            assert_all_once(stack, other, exchange, collector)
