"""Check what the VPN scripts get from outside, and print what passed.

    vpn_parse.py country CODE < countries.json   the id that NordVPN's API gives to the country
    vpn_parse.py servers PREFIX < servers.json   NordVPN host names, best first
    vpn_parse.py config FILE < any.ovpn          "host port protocol" for each server; FILE gets the rest, cleaned
    vpn_parse.py address NAME SERVER             the name's IPv4 address, asked of this DNS server

The output goes into file names, firewall rules and OpenVPN's command line, so nothing is passed on that is not known
to be harmless there. What cannot be used gives one line on stderr and exit code 1.
"""

from __future__ import annotations

import ipaddress
import json
import re
import secrets
import socket
import struct
import sys
from itertools import takewhile
from pathlib import Path
from typing import Any

# Options that run or load something, or that read more options; a server's configuration has no business with them.
HOOKS = re.compile(
    "up|down|up-restart|ipchange|route-up|route-pre-down|tls-verify|tls-crypt-v2-verify|auth-user-pass-verify"
    "|client-connect|client-disconnect|client-crresponse|learn-address|iproute|script-security|setenv|setenv-safe"
    "|plugin|engine|providers|pkcs11-providers|config|management.*"
)
# Options that tunnel.sh sets itself, or that would undo what it sets.
OURS = re.compile(
    "remote|proto|port|rport|lport|local|bind|nobind|float|remote-random|remote-random-hostname|resolv-retry"
    "|dev|dev-type|dev-node|auth-user-pass|auth-nocache|auth-retry|askpass|ping|ping-exit|ping-restart|ping-timer-rem"
    "|keepalive|remap-usr1|data-ciphers|data-ciphers-fallback|redirect-gateway|redirect-private|route-nopull"
    "|route-noexec|ifconfig-noexec|pull-filter|verb|mute|log|log-append|syslog|status|writepid|daemon|user|group"
    "|chroot|cd|block-outside-dns|register-dns|http-proxy|socks-proxy|explicit-exit-notify|disable-dco"
)
# Options that OpenVPN 2.6 for Linux ends over, and without which a connection is as safe: they say what is so anyhow,
# or speak to Windows. Of others, such as tls-remote, that is not so: OpenVPN itself is to complain about them.
GONE = re.compile(
    "keysize|ncp-disable|key-method|compat-names|no-name-remapping|ip-win32|tap-sleep|dhcp-renew|dhcp-release"
    "|dhcp-pre-release|dhcp-internal|show-net-up|pause-exit|service|win-sys|windows-driver|allow-nonadmin"
)
PROTOCOLS = {"udp": "udp", "udp4": "udp", "tcp": "tcp", "tcp4": "tcp", "tcp-client": "tcp", "tcp4-client": "tcp"}
SPACE = " \t\v\f\r"  # what OpenVPN skips at the start of a line


def country_id(code: str, answer: str) -> int:
    """Return the id of the country with this two-letter code from the API's list of countries."""
    for country in _json_list(answer):
        if str(country.get("code")).lower() == code and isinstance(country.get("id"), int):
            return int(country["id"])
    raise ValueError(f"NordVPN lists no country with the code {code}")


def servers(prefix: str, answer: str) -> list[str]:
    """Return the host names of the API's recommendations, in its order; `prefix` is the country's, as in us1234."""
    wanted = re.compile(rf"{prefix}[0-9]{{1,6}}\.nordvpn\.com")
    offered = [str(server.get("hostname")) for server in _json_list(answer) if server.get("status") == "online"]
    names = [name for name in offered if wanted.fullmatch(name)]
    if not names:
        raise ValueError(f"no server that is online and called {prefix}<number>.nordvpn.com is in the list")
    return names


def clean_config(text: str) -> tuple[list[str], str, list[str]]:
    """Split an OpenVPN client configuration into its servers, the options that may stay, and what was left out of them.

    A server is given as "host port protocol". Lines are read as OpenVPN reads them, so that nothing it would obey
    passes as the inside of a certificate.
    """
    kept: list[str] = []
    left_out: set[str] = set()
    remotes: list[list[str]] = []
    defaults = {"port": "1194", "proto": "udp"}
    roles: set[str] = set()
    block = ""
    for number, raw in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        line = raw.strip(SPACE)
        if len(raw.encode()) > 200 or not line.replace("\t", " ").isprintable():  # OpenVPN cuts lines at 256 bytes
            raise ValueError(f"line {number} is too long or is not text")
        if block:
            kept.append(line)
            if line.startswith(f"</{block}>"):
                block = ""
            continue
        if not line or line[0] in "#;" or line in ("<connection>", "</connection>"):
            continue
        opening = re.fullmatch(r"<([a-z0-9-]+)>", line)
        if opening and not HOOKS.fullmatch(opening[1]) and not OURS.fullmatch(opening[1]):
            block = opening[1]
            kept.append(line)
            continue
        words = list(takewhile(lambda word: word[0] not in "#;", line.split()))
        option = words[0].removeprefix("--")
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", option):
            raise ValueError(f"line {number} is not an OpenVPN option (an HTML page?)")
        if option == "remote":
            remotes.append(words[1:4])
        elif option in ("port", "rport"):
            defaults["port"] = words[-1]
        elif option == "proto":
            defaults["proto"] = words[-1]
        elif HOOKS.fullmatch(option) or GONE.fullmatch(option):
            left_out.add(option)
        elif not OURS.fullmatch(option):
            roles |= {option} & {"client", "tls-client", "pull"}
            kept.append(line)
    if block:
        raise ValueError(f"<{block}> is never closed")
    if "client" not in roles and roles != {"tls-client", "pull"}:  # which is what it is short for
        raise ValueError("not an OpenVPN client configuration: there is no line 'client'")
    return [_remote(words, defaults) for words in remotes], "\n".join(kept) + "\n", sorted(left_out)


def address(name: str, server: str) -> str:
    """Return the first IPv4 address that the DNS server at this address gives for `name`, or raise OSError."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.rstrip(".").split("."))
    question = labels + struct.pack(">BHH", 0, 1, 1)  # A, IN
    query_id = secrets.randbits(16)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.settimeout(1)
        connection.connect((server, 53))
        connection.send(struct.pack(">6H", query_id, 0x0100, 1, 0, 0, 0) + question)
        reply = connection.recv(4096)
    answer_id, flags, _, answers, _, _ = struct.unpack(">6H", reply[:12])
    at = 12 + len(question)
    for _ in range(answers if answer_id == query_id and flags & 0x000F == 0 else 0):
        while 0 < reply[at] < 0xC0:  # a name is labels that end with an empty one or a pointer
            at += 1 + reply[at]
        at += 2 if reply[at] else 1
        kind, _, _, length = struct.unpack(">HHIH", reply[at : at + 10])
        at += 10
        if kind == 1 and length == 4:
            return socket.inet_ntoa(reply[at : at + 4])
        at += length
    raise OSError(f"{server} knows no IPv4 address of {name}")


def _json_list(answer: str) -> list[dict[str, Any]]:
    try:
        items = json.loads(answer)
    except ValueError:
        items = None
    if not isinstance(items, list):
        raise ValueError(f"the answer is not the list that was asked for; it begins: {answer[:60]!r}")  # noqa: TRY004
    return [item for item in items if isinstance(item, dict)]


def _remote(words: list[str], defaults: dict[str, str]) -> str:
    host, port, protocol = [*words, "", "", ""][:3]
    port = port or defaults["port"]
    protocol = protocol or defaults["proto"]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}", host) or not re.fullmatch(r"[0-9]{1,5}", port):
        raise ValueError(f"'remote {' '.join(words)}' is not a server's name and port")
    if protocol not in PROTOCOLS or not 0 < int(port) < 65536:
        raise ValueError(f"'remote {host} {port} {protocol}': only udp and tcp over IPv4 work, with ports up to 65535")
    return f"{host} {port} {PROTOCOLS[protocol]}"


def main(arguments: list[str]) -> None:
    """Run one of the four commands of the module's text."""
    command, argument = arguments[:2]
    if command == "country":
        print(country_id(argument, sys.stdin.read()))
    elif command == "servers":
        print(*servers(argument, sys.stdin.read()), sep="\n")
    elif command == "config":
        remotes, kept, left_out = clean_config(sys.stdin.read())
        if not remotes:
            raise ValueError("there is no line 'remote' that names a server")
        Path(argument).write_text(kept)
        print(*remotes, sep="\n")
        if left_out:
            print(f"left out of the configuration: {' '.join(left_out)}", file=sys.stderr)
    elif command == "address":
        print(ipaddress.IPv4Address(address(argument, arguments[2])))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, IndexError, struct.error) as error:
        sys.exit(str(error))
