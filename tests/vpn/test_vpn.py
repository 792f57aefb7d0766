"""The container's start: whatever happens to the tunnel, the kill switch holds, and a failure finds another server."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vpn.vpnlab import (
    CAPABILITIES,
    CLICKHOUSE_MOVED,
    CLIENT,
    DNS,
    EXCHANGE,
    FIRST,
    GATEWAY,
    PASSWORD,
    SECOND,
    SERVERS,
    THIRD,
    USER,
    Client,
    World,
    inside,
)

pytestmark = pytest.mark.vpn

TUNNEL_LOST = 75
REFUSED_TO_START = 78
METRICS_PORT = 9101


def connected(world: World, client: Client) -> None:
    """Wait until the collector gets through to both, and then some: it is under load."""
    client.wait_for("VPN connected successfully")
    world.wait("the exchange", lambda: sum(name == "exchange" for name, _ in world.reached) > 5)
    world.wait("ClickHouse", lambda: world.peers("clickhouse"))


def assert_no_leak(world: World) -> None:
    """Call this last: it ends the recording."""
    assert world.strays() == []
    assert CLIENT not in world.peers("exchange")
    assert not world.peers("exchange6")
    assert "exchange.test" not in world.docker_dns_names, "the name was looked up from the host's address"


# ---- with and without credentials


def test_without_credentials_the_collector_runs_and_is_not_protected(world: World, client: Client) -> None:
    """The control for all the others: a leak is possible, and is seen."""
    client.start(NORDVPN_USER="", NORDVPN_PASS="")
    client.wait_for("No VPN credentials provided, running without VPN")
    world.wait("the exchange", lambda: CLIENT in world.peers("exchange") and world.peers("exchange6"))
    client.wait_for("collector: nobody, credentials '', CapEff:\t0000000000000000")
    assert client.terminate() == 0
    assert world.strays()
    assert any(b"LEAK" in packet.frame for packet in world.packets())
    assert "exchange.test" in world.docker_dns_names


def test_with_credentials_all_goes_through_the_tunnel(world: World, client: Client) -> None:
    world.start_server(FIRST)
    client.start()
    connected(world, client)
    client.wait_for(f"VPN: server {FIRST}, name servers {DNS}")
    client.wait_for("collector: nobody, credentials '', CapEff:\t0000000000000000")
    client.wait_for("collector: reached exchange.test")
    command_line = Path(f"/proc/{client.pid('openvpn')}/cmdline").read_bytes()
    assert USER.encode() not in command_line
    with inside(world.client_namespace):  # as root, and past the routes
        outward, inbox = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
    outward.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
    outward.settimeout(1)
    with outward, pytest.raises(TimeoutError):
        outward.connect((EXCHANGE, 80))
    inbox.bind((CLIENT, 0))
    inbox.settimeout(1)
    with inside(world.namespace), socket.socket(type=socket.SOCK_DGRAM) as outsider, inbox:
        outsider.sendto(b"anybody there?", inbox.getsockname())
        with pytest.raises(TimeoutError):
            inbox.recv(100)
    credentials = next((client.tmp / "shm").glob("*/credentials"))
    assert credentials.stat().st_mode & 0o077 == 0
    assert "Initialization Sequence Completed" in (client.tmp / "openvpn.log").read_text()
    assert client.terminate() == 0
    assert world.peers("exchange") == {"10.8.1.2"}
    assert "exchange.test" in world.vpn_dns_names
    # NordVPN was only asked before the collector began.
    services = [packet.port for packet in world.packets() if packet.protocol == "tcp"]
    assert 80 not in services[services.index(9000) :]
    assert_no_leak(world)


def test_credentials_may_be_files(world: World, client: Client) -> None:
    world.start_server(FIRST)
    (client.tmp / "user").write_text(f"{USER}\r\n")
    (client.tmp / "pass").write_text("service-password\n")
    client.start(
        NORDVPN_USER="", NORDVPN_PASS="", NORDVPN_USER_FILE="/tmp/user", NORDVPN_PASS_FILE="/tmp/pass", PLAY="exit7"
    )
    client.wait_for("VPN connected successfully")
    assert client.wait() == 7


def test_refused_credentials_never_start_the_collector(world: World, client: Client) -> None:
    world.start_server(FIRST)
    world.start_server(SECOND)
    client.start(NORDVPN_PASS="wrong")
    client.wait_for("VPN authentication failed - check NordVPN credentials")
    client.wait_for(f"VPN: connecting to {SECOND}")  # a single server may be at fault
    world.wait("the second refusal", lambda: client.output.count("VPN authentication failed") == 2)
    assert client.terminate() == 0
    assert "collector: nobody" not in client.output
    assert_no_leak(world)


def test_a_restart_does_not_make_refused_credentials_retry_faster(world: World, client: Client) -> None:
    world.start_server(FIRST)
    (client.tmp / "vpn").mkdir()
    (client.tmp / "vpn" / "auth").write_text(f"3 {int(time.time())}\n")
    client.start()
    client.wait_for("VPN: trying again in ")
    waits = re.findall(r"trying again in (\d+) s", client.output)
    assert 50 <= int(waits[0]) <= 60
    assert client.terminate() == 0
    assert world.api_requests == []


@pytest.mark.parametrize("kind", ["auth", "other"])
def test_the_delay_after_failures(scripts: Path, kind: str) -> None:
    script = f"source {scripts}/servers.sh; for count in 1 2 3 4 5 6 7 100; do delay {kind} $count; done"
    delays = [int(word) for word in subprocess.check_output(["bash", "-uc", script], text=True).split()]
    assert delays == sorted(delays)
    assert delays[0] <= 5
    if kind == "auth":
        assert delays[2] >= 60
        assert delays[-1] == 600  # NordVPN forgets sessions after ten minutes


# ---- servers


def test_a_dead_server_is_passed_over(world: World, client: Client) -> None:
    world.start_server(SECOND)
    client.start()
    client.wait_for(f"VPN: no tunnel to {FIRST}: ")
    client.wait_for("Inactivity timeout (--ping-exit), exiting")
    connected(world, client)
    assert client.terminate() == 0
    assert_no_leak(world)


def test_a_server_that_another_client_uses_is_passed_over(world: World, client: Client) -> None:
    world.start_server(FIRST)
    world.start_server(SECOND)
    in_use = client.tmp / "cache" / "in-use"
    in_use.mkdir(parents=True)
    with (in_use / f"{FIRST}.udp").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        client.start(PLAY="exit7")
        client.wait_for("VPN connected successfully")
    assert client.wait() == 7
    assert "VPN: server " + SECOND in client.output


def test_a_pinned_server_and_tcp(world: World, client: Client) -> None:
    world.start_server(THIRD, "tcp")
    client.start(VPN_SERVER="us1003", VPN_PROTOCOL="tcp")
    connected(world, client)
    client.wait_for(f"VPN: connecting to {THIRD} ({SERVERS[THIRD]}, tcp port 443)")
    assert client.terminate() == 0
    assert_no_leak(world)


def test_the_last_server_list_serves_while_the_api_does_not(world: World, client: Client) -> None:
    world.start_server(FIRST)
    client.start(PLAY="exit7")
    assert client.wait() == 7
    for answer in (client.tmp / "cache").rglob("*.*"):
        os.utime(answer, (1e9, 1e9))
    world.api_answers = "not"
    client.start()
    connected(world, client)
    client.wait_for("The requested URL returned error: 503; using the answer of 2001-09-09")
    assert client.terminate() == 0
    assert_no_leak(world)


def test_a_page_instead_of_the_server_list_is_not_taken_for_one(world: World, client: Client) -> None:
    world.start_server(FIRST)
    world.api_answers = "html"
    client.start()
    client.wait_for("the answer is not the list that was asked for; it begins: '<html>")
    assert not list((client.tmp / "cache").glob("*.json"))
    world.api_answers = "well"
    connected(world, client)
    assert client.terminate() == 0
    assert_no_leak(world)


def test_any_other_provider_but_not_its_hooks(world: World, client: Client) -> None:
    world.start_server(FIRST)
    (client.tmp / "hook.sh").write_text("#!/bin/sh\ntouch /tmp/hooked\n")
    (client.tmp / "hook.sh").chmod(0o755)
    config = world.configuration(FIRST).replace(SERVERS[FIRST], "vpn.example")
    (client.tmp / "other.ovpn").write_text(f"script-security 2\nup /tmp/hook.sh\n{config}plugin /tmp/hook.sh\n")
    client.start(VPN_CONFIG="/tmp/other.ovpn")
    connected(world, client)
    client.wait_for("VPN: /tmp/other.ovpn: left out of the configuration: plugin script-security up")
    assert client.terminate() == 0
    assert world.api_requests == []
    assert not (client.tmp / "hooked").exists()
    assert_no_leak(world)


def test_options_that_openvpn_no_longer_has_are_left_out_where_that_is_harmless(world: World, client: Client) -> None:
    world.start_server(FIRST)
    dead = "".join(f"{option}\n" for option in ("keysize 256", "ncp-disable", "key-method 2", "ip-win32 dynamic"))
    (client.tmp / "other.ovpn").write_text(world.configuration(FIRST) + dead)
    client.start(VPN_CONFIG="/tmp/other.ovpn", PLAY="exit7")
    client.wait_for("VPN: /tmp/other.ovpn: left out of the configuration: ip-win32 key-method keysize ncp-disable")
    client.wait_for("VPN connected successfully")
    assert client.wait() == 7


@pytest.mark.parametrize(
    ("line", "words"),
    [
        # Without it, any server of this provider would do, so it is not for us to leave out.
        ("tls-remote vpn.example", "Options error: Unrecognized option or missing or extra parameter(s)"),
        ("ca /tmp/none.crt", "Options error: --ca fails with '/tmp/none.crt': No such file or directory"),
        ("remote-cert-tls", "missing or extra parameter(s) in /dev/shm/"),
    ],
)
def test_a_configuration_that_openvpn_does_not_take_is_told_in_its_words(
    world: World, client: Client, line: str, words: str
) -> None:
    (client.tmp / "other.ovpn").write_text(f"{world.configuration(FIRST)}{line}\n")
    client.start(VPN_CONFIG="/tmp/other.ovpn")
    assert client.wait() == REFUSED_TO_START
    assert words in client.output
    assert "the configuration cannot be used" in client.output
    assert "collector: nobody" not in client.output


def test_a_file_that_is_missing_is_named(world: World, client: Client) -> None:
    text = re.sub("<tls-auth>.*</tls-auth>\n", "tls-auth /vpn/ta.key", world.configuration(FIRST), flags=re.DOTALL)
    (client.tmp / "other.ovpn").write_text(text)
    client.start(VPN_CONFIG="/tmp/other.ovpn")
    client.wait_for(f"VPN: no tunnel to {SERVERS[FIRST]}: Cannot pre-load keyfile (/vpn/ta.key)")


def test_with_a_vpn_the_collector_knows_no_proxy(world: World, client: Client) -> None:
    world.start_server(FIRST)
    names = ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy")
    proxies = {each: "proxy.example:3128" for name in names for each in (name, name.upper())}
    proxies |= {"no_proxy": "*", "NO_PROXY": "*", "PLAY": "environment"}  # root asks NordVPN directly
    client.start(**proxies)
    assert client.wait() == 0
    assert "collector: PLAY=environment" in client.output
    assert "proxy" not in client.output.lower()
    client.start(**proxies, NORDVPN_USER="", NORDVPN_PASS="")  # the control
    assert client.wait() == 0
    assert "collector: https_proxy=proxy.example:3128" in client.output


# ---- the end of a tunnel


def kill_server(world: World, _: Client) -> None:
    world.kill_server(FIRST)


def kill_openvpn(_: World, client: Client) -> None:
    os.kill(client.pid("openvpn"), signal.SIGKILL)


def take_tunnel_down(world: World, _: Client) -> None:
    subprocess.run(["ip", "-n", world.client_namespace, "link", "set", "tun0", "down"], check=True)


def delete_tunnel(world: World, _: Client) -> None:
    subprocess.run(["ip", "-n", world.client_namespace, "link", "delete", "tun0"], check=True)


def take_link_down(world: World, _: Client) -> None:
    """Docker's network flaps: the routes over it are gone, also those that kept the server apart."""
    subprocess.run(["ip", "-n", world.client_namespace, "link", "set", "eth0", "down"], check=True)


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (kill_server, "Inactivity timeout (--ping-exit), exiting"),
        (kill_openvpn, ""),
        (take_tunnel_down, "its interface or its routes are gone"),
        (delete_tunnel, "its interface or its routes are gone"),
        (take_link_down, "its interface or its routes are gone"),
    ],
)
def test_a_lost_tunnel_stops_the_collector_and_the_next_start_takes_another_server(
    world: World, client: Client, end: Callable[[World, Client], None], reason: str
) -> None:
    world.start_server(FIRST)
    world.start_server(SECOND)
    client.start()
    connected(world, client)
    end(world, client)
    assert client.wait() == TUNNEL_LOST
    client.wait_for(f"VPN: the tunnel to {FIRST} is lost: ")
    client.wait_for(reason)
    client.wait_for("collector: drained")
    world.restore_link()
    client.start()
    client.wait_for(f"VPN: server {SECOND}")
    world.wait("the exchange by the second server", lambda: "10.8.2.2" in world.peers("exchange"))
    assert client.terminate() == 0
    assert_no_leak(world)


def test_a_collector_that_does_not_stop_is_killed(world: World, client: Client) -> None:
    world.start_server(FIRST)
    client.start(PLAY="deaf")
    connected(world, client)
    take_tunnel_down(world, client)
    assert client.wait() == TUNNEL_LOST
    assert_no_leak(world)


def test_an_idle_tunnel_is_kept(world: World, client: Client) -> None:
    """The server pings once a minute, as NordVPN's do; OpenVPN gives a mute server up after 20 s."""
    world.start_server(FIRST)
    client.start(PLAY="idle")
    client.wait_for("VPN connected successfully")
    knocks = 5
    world.wait("what keeps it busy for half a minute", lambda: world.vpn_dns_names.count("") >= knocks)
    assert client.terminate() == 0
    assert "lost" not in client.output
    assert_no_leak(world)


# ---- metrics


def ask(world: World, source: str, destination: str, device: str = "") -> tuple[bool, int]:
    """Ask from an address of the world for metrics; return whether somebody answers, and the port that asked."""
    with inside(world.namespace):
        asking = socket.socket()
    if device:
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    asking.settimeout(1)
    with asking:
        asking.bind((source, 0))
        return asking.connect_ex((destination, METRICS_PORT)) == 0, asking.getsockname()[1]


def serve_metrics(world: World) -> socket.socket:
    """Do what the collector does with METRICS_HOST=0.0.0.0."""
    with inside(world.client_namespace):
        return socket.create_server(("0.0.0.0", METRICS_PORT), reuse_port=True)


def test_metrics_are_for_clickhouses_network_and_not_for_the_tunnel(world: World, client: Client) -> None:
    world.start_server(FIRST)
    client.start(METRICS_PORT=str(METRICS_PORT), PLAY="idle")
    client.wait_for("VPN connected successfully")
    with serve_metrics(world):
        answered, port = ask(world, GATEWAY, CLIENT)
        assert answered
        assert not ask(world, EXCHANGE, CLIENT)[0], "another network is let in"
        assert not ask(world, "10.8.1.1", "10.8.1.2")[0], "the VPN's server is let in"
        assert not ask(world, GATEWAY, "10.8.1.2", "tun1")[0]  # who pretends: an answer would leave by eth0
        with inside(world.client_namespace):
            outward = socket.socket()
        outward.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        outward.settimeout(1)
        with outward:
            outward.bind((CLIENT, METRICS_PORT))
            assert outward.connect_ex((GATEWAY, 80)) != errno.ECONNREFUSED, "it may not only answer"
    assert client.terminate() == 0
    assert {packet.port for packet in world.packets() if packet.source_port == METRICS_PORT} == {port}
    assert world.strays(answering=METRICS_PORT) == []


def test_without_a_metrics_port_nobody_is_let_in(world: World, client: Client) -> None:
    world.start_server(FIRST)
    client.start(PLAY="idle")
    client.wait_for("VPN connected successfully")
    with serve_metrics(world):
        assert not ask(world, GATEWAY, CLIENT)[0]
        assert not ask(world, "10.8.1.1", "10.8.1.2")[0]
    assert client.terminate() == 0
    assert_no_leak(world)


# ---- everything else


def test_without_a_kill_switch_nothing_starts(world: World, client: Client) -> None:
    world.start_server(FIRST)
    client.start(CAPABILITIES.replace("+net_admin", "-net_admin"))
    assert client.wait() == REFUSED_TO_START
    assert "VPN: no kill switch, so no collector" in client.output
    assert "collector: nobody" not in client.output
    assert world.strays() == []


@pytest.mark.parametrize("capability", ["setuid", "setgid", "kill", "dac_override"])
def test_each_capability_is_needed(world: World, client: Client, capability: str) -> None:
    """Nobody is to have one that he can do without; of NET_ADMIN, the test above tells."""
    world.start_server(FIRST)
    (client.tmp / "pass").write_text(PASSWORD)
    (client.tmp / "pass").chmod(0o600)
    os.chown(client.tmp / "pass", 1000, 1000)  # as secrets are, that their owner may read and nobody else
    client.start(
        CAPABILITIES.replace(f"+{capability}", f"-{capability}"), NORDVPN_PASS="", NORDVPN_PASS_FILE="/tmp/pass"
    )
    if capability == "dac_override":
        assert client.wait() == REFUSED_TO_START
        client.wait_for("NORDVPN_PASS_FILE=/tmp/pass cannot be read")
    elif capability == "kill":
        connected(world, client)
        os.kill(client.pid(), signal.SIGTERM)
        time.sleep(3)
        assert "collector: drained" not in client.output
    else:
        assert client.wait() != 0
        client.wait_for("VPN connected successfully")
        assert "collector: nobody" not in client.output


def test_the_exit_code_is_the_collectors(world: World, client: Client) -> None:
    world.start_server(FIRST)
    client.start(PLAY="exit7")
    assert client.wait() == 7
    assert list((client.tmp / "shm").iterdir()) == [], "the credentials are left"


def test_stopping_the_container_stops_the_collector_before_the_tunnel(world: World, client: Client) -> None:
    world.start_server(FIRST)
    client.start()
    connected(world, client)
    assert client.terminate() == 0
    assert "collector: drained" in client.output
    world.wait("the server to be told", lambda: "exit message received" in world.server_log(FIRST))


def test_clickhouse_may_come_back_with_another_address(world: World, client: Client) -> None:
    world.start_server(FIRST)
    client.start()
    connected(world, client)
    world.clickhouse = CLICKHOUSE_MOVED
    world.wait("ClickHouse at its new address", lambda: world.peers("moved clickhouse"))
    assert f"{CLICKHOUSE_MOVED} clickhouse" in client.etc("hosts")
    assert client.terminate() == 0
    assert_no_leak(world)


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"NORDVPN_PASS": ""}, "one is set without the other"),
        ({"NORDVPN_USER": "me@example.com"}, "NORDVPN_USER is an e-mail address, which is the account's"),
        ({"NORDVPN_USER": "# note"}, "NORDVPN_USER is a note, not a value: give it a line of its own in .env"),
        ({"NORDVPN_PASS": "# note"}, "NORDVPN_PASS is a note, not a value: give it a line of its own in .env"),
        ({"VPN_COUNTRY": "us;reboot"}, "VPN_COUNTRY=us;reboot is not"),
        ({"VPN_PROTOCOL": "icmp"}, "VPN_PROTOCOL=icmp is neither"),
        ({"VPN_SERVER": "../us1"}, "VPN_SERVER=../us1 is not"),
        ({"VPN_CONFIG": "/tmp/none.ovpn"}, "VPN_CONFIG=/tmp/none.ovpn cannot be read"),
        ({"VPN_DNS": "dns.example"}, "VPN_DNS=dns.example is not"),
        ({"METRICS_PORT": "9101 accept"}, "METRICS_PORT=9101 accept is not a port"),
        ({"NORDVPN_USER": "", "NORDVPN_USER_FILE": "/tmp/none"}, "NORDVPN_USER_FILE=/tmp/none cannot be read"),
        (
            {"NORDVPN_USER": "", "NORDVPN_PASS": "", "VPN_REQUIRED": "1"},
            "VPN_REQUIRED=1, and this container has no VPN credentials",
        ),
        ({"COLLECTOR_USER": "nobody-at-all"}, "COLLECTOR_USER=nobody-at-all does not exist"),
    ],
)
def test_a_wrong_setting_is_named(world: World, client: Client, setting: dict[str, str], complaint: str) -> None:
    client.start(**setting)
    assert client.wait() == REFUSED_TO_START
    client.wait_for(complaint)
    assert "collector: nobody" not in client.output
    assert not world.peers("exchange")
    assert EXCHANGE not in {packet.destination for packet in world.packets()}
