"""What comes from the network: what is taken from it, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from config import PROJECT

DATA = PROJECT / "tests" / "data" / "deployment"


@pytest.fixture(scope="module")
def parse() -> ModuleType:
    """The script, which is in no package, as a module."""
    path = Path(__file__).parents[2] / "docker" / "vpn_parse.py"
    spec = importlib.util.spec_from_file_location("vpn_parse", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CLIENT = "client\nremote 198.51.100.1 1194\nproto udp\n"


def test_servers_are_taken_in_the_order_of_the_answer(parse: ModuleType) -> None:
    answer = [{"hostname": f"uk{n}.nordvpn.com", "status": "online"} for n in (2, 3, 1)]
    assert parse.servers("uk", json.dumps(answer)) == ["uk2.nordvpn.com", "uk3.nordvpn.com", "uk1.nordvpn.com"]


@pytest.mark.parametrize(
    "server",
    [
        {"hostname": "us1.nordvpn.com", "status": "online"},
        {"hostname": "uk1.nordvpn.com", "status": "offline"},
        {"hostname": "uk1.nordvpn.com.example", "status": "online"},
        {"hostname": "uk1.nordvpn.com\n", "status": "online"},
        {"hostname": "../uk1.nordvpn.com", "status": "online"},
        {"hostname": None, "status": "online"},
        "uk1.nordvpn.com",
    ],
)
def test_a_server_that_was_not_asked_for_is_not_taken(parse: ModuleType, server: object) -> None:
    with pytest.raises(ValueError, match="no server that is online"):
        parse.servers("uk", json.dumps([server]))


@pytest.mark.parametrize("answer", ["<html>", "", "{}", '{"hostname": "uk1.nordvpn.com"}', "[", "null"])
def test_an_answer_that_is_no_list_is_refused(parse: ModuleType, answer: str) -> None:
    with pytest.raises(ValueError, match="not the list that was asked for"):
        parse.servers("uk", answer)


def test_a_country_is_found_by_its_code(parse: ModuleType) -> None:
    answer = json.dumps([{"id": 74, "code": "FR"}, {"id": 81, "code": "DE"}])
    assert parse.country_id("de", answer) == 81
    with pytest.raises(ValueError, match="no country with the code xx"):
        parse.country_id("xx", answer)


@pytest.mark.parametrize(
    ("lines", "remotes"),
    [
        ("remote 198.51.100.1 1194\nproto udp", ["198.51.100.1 1194 udp"]),
        ("remote vpn.example", ["vpn.example 1194 udp"]),
        ("proto tcp\nport 443\nremote a.example\nremote b.example 80", ["a.example 443 tcp", "b.example 80 tcp"]),
        ("remote a.example 443 tcp-client # comment", ["a.example 443 tcp"]),
        ("<connection>\nremote a.example 1 udp\n</connection>", ["a.example 1 udp"]),
    ],
)
def test_the_servers_of_a_configuration(parse: ModuleType, lines: str, remotes: list[str]) -> None:
    assert parse.clean_config(f"client\n{lines}\n")[0] == remotes


@pytest.mark.parametrize(
    "line",
    [
        "up /hook",
        "  \tup /hook",
        "--up /hook",
        "plugin x.so",
        "script-security 2",
        "setenv opt up /hook",
        "management-hold",
        "config /etc/other",
        "tls-verify /hook",
        "down /hook ; comment",
    ],
)
def test_hooks_are_left_out_and_named(parse: ModuleType, line: str) -> None:
    _, kept, left_out = parse.clean_config(f"{CLIENT}{line}\nverify-x509-name server\n")
    assert left_out == [line.split()[0].removeprefix("--")]
    assert kept == "client\nverify-x509-name server\n"


@pytest.mark.parametrize("line", ["daemon", "user nobody", "ping-restart 0", "route-nopull", "pull-filter accept ping"])
def test_what_would_undo_the_scripts_own_options_is_left_out(parse: ModuleType, line: str) -> None:
    assert parse.clean_config(f"{CLIENT}{line}\n")[1] == "client\n"


@pytest.mark.parametrize("line", ["keysize 256", "ncp-disable", "key-method 2", "ip-win32 dynamic", "tap-sleep 5"])
def test_what_openvpn_no_longer_has_is_left_out_and_named(parse: ModuleType, line: str) -> None:
    assert parse.clean_config(f"{CLIENT}{line}\n")[1:] == ("client\n", [line.split()[0]])


def test_what_makes_a_connection_safe_is_never_left_out(parse: ModuleType) -> None:
    assert parse.clean_config(f"{CLIENT}tls-remote vpn.example\n")[1] == "client\ntls-remote vpn.example\n"


@pytest.mark.parametrize(
    ("name", "remotes", "left_out"),
    [
        ("keysize.ovpn", ["vpn.example.com 1194 udp"], ["keysize"]),
        ("tls-client-pull.ovpn", ["vpn.example.com 1194 udp"], ["script-security"]),
    ],
)
def test_configurations_of_others_are_taken(parse: ModuleType, name: str, remotes: list[str], left_out: str) -> None:
    found = parse.clean_config((DATA / name).read_text())
    assert (found[0], found[2]) == (remotes, left_out)


@pytest.mark.parametrize("lines", ["client", "tls-client\npull", "pull\ntls-client"])
def test_a_client_may_be_called_by_either_name(parse: ModuleType, lines: str) -> None:
    assert parse.clean_config(f"{lines}\nremote a.example\n")[1] == f"{lines}\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("<html><body>Too many requests</body></html>\n", "line 1 is not an OpenVPN option"),
        ("", "no line 'client'"),
        ("tls-client\nremote 198.51.100.1 1194\n", "no line 'client'"),
        ("pull\nremote 198.51.100.1 1194\n", "no line 'client'"),
        ("remote 198.51.100.1 1194\n", "no line 'client'"),
        (CLIENT + '"up" /hook\n', "line 4 is not an OpenVPN option"),
        (CLIENT + "u\\p /hook\n", "line 4 is not an OpenVPN option"),
        (CLIENT + "<ca>\nnever closed\n", "<ca> is never closed"),
        (CLIENT + "<auth-user-pass>\nuser\npass\n</auth-user-pass>\n", "line 4 is not an OpenVPN option"),
        # OpenVPN would read on after 255 bytes as if on a new line, and so leave the certificate there.
        (CLIENT + "<ca>\n" + "A" * 255 + "</ca>\nup /hook\n</ca>\n", "line 5 is too long"),
        (CLIENT + "bell \a\n", "line 4 is too long or is not text"),
        ("client\nremote 198.51.100.1;reboot 1194\n", "not a server's name and port"),
        ("client\nremote\n", "not a server's name and port"),
        ("client\nremote 198.51.100.1 65536\n", "ports up to 65535"),
        ("client\nremote 198.51.100.1 1194 udp6\n", "only udp and tcp over IPv4"),
    ],
)
def test_what_is_no_client_configuration_is_refused(parse: ModuleType, text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        parse.clean_config(text)


def test_certificates_are_kept_as_they_are_and_end_where_openvpn_ends_them(parse: ModuleType) -> None:
    _, kept, left_out = parse.clean_config(f"{CLIENT}<ca>\nup inside\n  </ca> trailing\nup /hook\n")
    assert kept == "client\n<ca>\nup inside\n</ca> trailing\n"
    assert left_out == ["up"]
