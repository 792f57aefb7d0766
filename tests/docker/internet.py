"""The internet, as far as the containers need it, in a network namespace of its own; run by dockerlab.py.

    python3 internet.py DIRECTORY EXCHANGE_PORT

In: DIRECTORY with the certificates, and a client configuration <hostname>.udp.ovpn per VPN server; a simulated
exchange on 127.0.0.1. Out: a name server, and over TLS NordVPN's API and download site, ipinfo.io and
contract.mexc.com. It prints a line when all of them serve.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import sys
from functools import partial
from pathlib import Path
from typing import cast

DNS = "103.86.96.100"  # NordVPN's own
NORDVPN, IPINFO, EXCHANGE = "198.51.100.1", "203.0.113.20", "203.0.113.10"
NAMES = {
    "api.nordvpn.com": NORDVPN,
    "downloads.nordcdn.com": NORDVPN,
    "ipinfo.io": IPINFO,
    "contract.mexc.com": EXCHANGE,
}
SERVERS = {  # name: NordVPN's id of the country, address
    "us1001.nordvpn.com": (228, "198.51.100.11"),
    "uk1001.nordvpn.com": (227, "198.51.100.12"),
    "ca1001.nordvpn.com": (38, "198.51.100.13"),
    "us1002.nordvpn.com": (228, "198.51.100.14"),
    "de1001.nordvpn.com": (81, "198.51.100.15"),
}


class NameServer(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        end = data.index(b"\0", 12)
        labels, at = [], 12
        while at < end:
            labels.append(data[at + 1 : at + 1 + data[at]].decode())
            at += 1 + data[at]
        address = NAMES.get(".".join(labels))
        is_ipv4 = data[end + 1 : end + 3] == b"\0\1"
        answer = b""
        if address and is_ipv4:
            answer = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 5, 4) + socket.inet_aton(address)
        head = data[:2] + struct.pack(">5H", 0x8180 if address else 0x8183, 1, 1 if answer else 0, 0, 0)
        self._transport.sendto(head + data[12 : end + 5] + answer, addr)


class Web:
    """NordVPN and ipinfo.io."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split(" ")[1]
        host = next(line[6:] for line in head.split("\r\n") if line.lower().startswith("host: "))
        body = self._answer(host, path, writer.get_extra_info("peername")[0])
        writer.write(b"HTTP/1.0 %s\r\n\r\n%s" % (b"200 OK" if body else b"404 Not Found", body.encode()))
        writer.close()

    def _answer(self, host: str, path: str, peer: str) -> str:
        if host == "ipinfo.io" and path == "/ip":
            return peer
        if host == "api.nordvpn.com" and path == "/v1/servers/countries":
            return json.dumps([{"id": 81, "code": "DE"}])  # the others are known
        if host == "api.nordvpn.com" and path.startswith("/v1/servers/recommendations?"):
            found = [name for name, (country, _) in SERVERS.items() if f"[country_id]={country}&" in path]
            return json.dumps([{"hostname": name, "status": "online", "load": 7} for name in found])
        file = self._directory / path.rsplit("/", 1)[1]
        if host == "downloads.nordcdn.com" and path.startswith("/configs/files/ovpn_udp/servers/") and file.exists():
            return file.read_text()
        return ""


async def forward(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes to and fro between a client and the simulated exchange, until one of them ends."""
    exchange_reader, exchange_writer = await asyncio.open_connection("127.0.0.1", port)

    async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()

    await asyncio.gather(carry(reader, exchange_writer), carry(exchange_reader, writer))


async def main(directory: Path, exchange_port: int) -> None:
    loop = asyncio.get_running_loop()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(directory / "web.crt", directory / "web.key")
    web = Web(directory)
    await loop.create_datagram_endpoint(NameServer, (DNS, 53))
    for address in (NORDVPN, IPINFO):
        await asyncio.start_server(web.serve, address, 443, ssl=tls)
    await asyncio.start_server(partial(forward, exchange_port), EXCHANGE, 443, ssl=tls)
    print("serving", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
