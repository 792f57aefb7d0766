"""REST: whatever a server answers is the data, or one line that says what was asked and what came."""

from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from config import Settings
from pipeline import rest
from pipeline.messages import Number
from pipeline.rest import TOO_MANY_REQUESTS, Rest, RestError
from tests.stack import Stack, free_port
from tests.web import Answer, Web, serving

PATH = "/api/v1/contract/deals/BTC_USDT"
GOOD = b'{"success":true,"code":0,"data":[{"p":2384.60,"v":1}]}'
ZIPPED = gzip.compress(GOOD, mtime=0)
REFUSED = b'{"success":false,"code":1001,"message":"Contract does not exist!"}'
TOO_MANY = b'{"success":false,"code":510,"message":"Requests are too frequent, please try again later!"}'


def answering(body: bytes = GOOD, status: int = 200, **headers: str) -> AbstractContextManager[Web]:
    """Serve one answer to all that is asked, but for a login page."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    login: Answer = (200, {}, b"<html>Log in</html>")
    return serving(lambda path: login if path == "/login" else (status, fields, body))


@pytest.fixture(autouse=True)
def unpaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "_APART", 0.0)


def client(first: str, second: str | None = None, timeout: float = 5.0) -> Rest:
    """Return a client of REST's own address and of the WebSocket's host, the same one if that is not given."""
    ws_url = f"{(second or first).replace('http', 'ws', 1)}/edge"
    return Rest(Settings(mexc_rest_url=first, mexc_ws_url=ws_url), timeout=timeout)


def failure(ask: Callable[[], object]) -> str:
    """Return the line that a request ends with."""
    with pytest.raises(RestError) as caught:
        ask()
    line = str(caught.value)
    assert line
    assert "\n" not in line
    return line


def test_the_data_comes_with_every_digit() -> None:
    with answering() as server:
        data = client(server.url).get(PATH, limit=100)
        assert data == [{"p": "2384.60", "v": "1"}]
        assert type(data[0]["p"]) is Number
        assert server.asked == [f"{PATH}?limit=100"]


def test_gzip_is_asked_for_and_unpacked() -> None:
    with answering(ZIPPED, Content_Encoding="gzip") as server:
        assert client(server.url).get(PATH) == [{"p": "2384.60", "v": "1"}]
        assert server.encodings == ["gzip"]


def test_an_answer_in_chunks_is_read() -> None:
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD)
    with answering(body, Transfer_Encoding="chunked") as server:
        assert client(server.url).get(PATH) == [{"p": "2384.60", "v": "1"}]


def test_what_the_setting_ends_with_is_of_no_matter() -> None:
    with answering() as server:
        client(f"{server.url}/", server.url).get(PATH)
        assert server.asked == [PATH]


@pytest.mark.parametrize(
    ("body", "status", "headers", "said"),
    [
        (b"Forbidden", 403, {}, "HTTP 403 Forbidden"),
        (b"", 503, {}, "HTTP 503 Service Unavailable"),
        (b"", 302, {"Location": "/login"}, "/login: the answer is no JSON object: <html>Log in</html>"),
        (b"", 302, {"Location": PATH}, "HTTP 302 The HTTP server returned a redirect error"),
        (b"", 302, {"Location": "file:///etc/hostname"}, "HTTP 302 Found - Redirection to url 'file:///etc/hostname'"),
        (REFUSED, 200, {}, "MEXC says: Contract does not exist! (code 1001)"),
        (b'{"success":false}', 200, {}, "MEXC says: no (code 0)"),
        (
            b'{"success":false,"code":[],"message":"\\n\\u001b[2J\\ud800"}',
            200,
            {},
            r"MEXC says: \x1b[2J\ud800 (code 0)",
        ),
        (b'{"success":true,"code":0}', 200, {}, "the answer holds no data"),
        (b'{"success":true,"code":0,"data":null}', 200, {}, "the answer holds no data"),
        (b"[1,2]", 200, {}, "the answer is no JSON object: [1,2]"),
        (b'{"data":[NaN]}', 200, {}, 'the answer is no JSON object: {"data":[NaN]}'),
        (b"[" * 100_000, 200, {}, "the answer is no JSON object: [[["),
        (b"", 200, {}, "the answer is empty"),
        (GOOD[:20], 200, {}, 'the answer is no JSON object: {"success":true,"cod'),
        (GOOD[:20], 200, {"Content-Length": str(len(GOOD))}, "the answer was cut"),
        (b"ff\r\n" + GOOD, 200, {"Transfer-Encoding": "chunked"}, "the answer was cut"),
        (b"zz\r\n" + GOOD, 200, {"Transfer-Encoding": "chunked"}, "the answer was cut"),
        (ZIPPED[:-9], 200, {}, "the answer is gzip, and cannot be unpacked"),
        (ZIPPED[:12] + b"x" * 30, 200, {}, "the answer is gzip, and cannot be unpacked"),
        (b"\xff\xfe\x00", 200, {"Content_Encoding": "br"}, r"the answer is no text: \xff\xfe\x00"),
        (gzip.compress(b" " * (17 << 20)), 200, {}, "the answer is gzip, and cannot be unpacked"),
        (b" " * (17 << 20), 200, {}, "the answer is larger than 16 MB"),
    ],
)
def test_what_is_no_data_is_a_line(body: bytes, status: int, headers: dict[str, str], said: str) -> None:
    with answering(body, status, **headers) as server:
        line = failure(lambda: client(server.url).get(PATH))
        assert line.startswith(f"{server.url}{PATH}")
        assert said in line


def test_bytes_that_are_no_http_are_a_line() -> None:
    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(b"\x00\x01 no HTTP\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        assert "no HTTP" in failure(lambda: client(f"http://127.0.0.1:{listener.getsockname()[1]}").get(PATH))
        thread.join()


def test_silence_and_a_refused_connection_are_lines() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # takes connections, and says nothing
        silent = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert failure(lambda: client(silent, timeout=0.2).get(PATH)) == f"{silent}{PATH}: no answer in time"
    closed = f"http://127.0.0.1:{free_port()}"
    assert failure(lambda: client(closed).get(PATH)) == f"{closed}{PATH}: Connection refused"


@pytest.mark.parametrize("host", ["http://no such host", "http://a..b", "http://[::1"])
def test_a_host_that_cannot_be_one_is_a_line(host: str) -> None:
    rest_client = Rest(Settings(mexc_rest_url=host, mexc_ws_url=f"ws://127.0.0.1:{free_port()}"))
    assert failure(lambda: rest_client.get(PATH)).startswith(host)


@pytest.mark.parametrize(("body", "status"), [(b"Forbidden", 403), (b"<html>", 200), (TOO_MANY, 200), (GOOD[:9], 200)])
def test_the_websockets_host_is_asked_where_the_first_gives_no_data(body: bytes, status: int) -> None:
    with answering(body, status) as first, answering() as second:
        asked = client(first.url, second.url)
        assert asked.get(PATH) == [{"p": "2384.60", "v": "1"}]
        assert (len(first.asked), len(second.asked)) == (1, 1)
        asked.get(PATH)
        assert (len(first.asked), len(second.asked)) == (1, 2)  # the one that answers is the first from now on
        second.answer = lambda path: (403, {}, b"")
        first.answer = lambda path: (200, {}, GOOD)
        asked.get(PATH)
        assert (len(first.asked), len(second.asked)) == (2, 3)


def test_the_websockets_host_is_asked_where_the_first_cannot_be_reached() -> None:
    with answering() as second:
        assert client(f"http://127.0.0.1:{free_port()}", second.url).get(PATH)


def test_what_mexc_refuses_is_not_asked_elsewhere() -> None:
    with answering(REFUSED) as first, answering() as second:
        with pytest.raises(RestError) as caught:
            client(first.url, second.url).get(PATH)
        assert caught.value.code == 1001
        assert second.asked == []


def test_a_name_without_an_address_is_said_to_be_one() -> None:
    assert failure(lambda: client("http://nobody.invalid").get(PATH)).endswith(f"{PATH}: no internet, or no DNS")


def test_where_both_fail_the_line_has_both() -> None:
    with answering(b"", 403) as first, answering(TOO_MANY) as second:
        with pytest.raises(RestError) as caught:
            client(first.url, second.url).get(PATH)
        assert str(caught.value) == (
            f"{first.url}{PATH}: HTTP 403 Forbidden; "
            f"{second.url}{PATH}: MEXC says: Requests are too frequent, please try again later! (code 510)"
        )
        assert caught.value.code == TOO_MANY_REQUESTS


def test_requests_keep_below_the_exchanges_limit(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    exchange = stack.exchange()
    paced = client(exchange.rest)
    for _ in range(21):  # one more than it takes in 2 s
        paced.get("/api/v1/contract/detail", symbol="BTC_USDT")


@pytest.mark.parametrize("fault", ["down", "forbid", "login", "half", "html", "error"])
def test_the_simulated_exchange_is_asked_at_its_other_address(stack: Stack, fault: str) -> None:
    exchange = stack.exchange("--fault", f"api-{fault}")
    assert client(exchange.rest, exchange.http).get("/api/v1/contract/detail", symbol="BTC_USDT")["contractSize"]
