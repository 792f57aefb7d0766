"""An internet made of two network namespaces, and a client in it that is started as a container would be.

    client  eth0 172.30.0.2 ---- 172.30.0.1 eth0  world

World holds real OpenVPN servers, and stands in for NordVPN's API and name servers, for the exchange and for ClickHouse.
The exchange can also be reached without the tunnel: a leak is possible, and is seen by the exchange (whose peer is then
not in 10.8.0.0/16) and on the client's outer interface, where every packet is recorded. The client runs
docker/entrypoint.sh as PID 1 of its own process, mount and network namespaces.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCRIPTS = HERE.parents[1] / "docker"
TOOLS = ["openvpn", "ip", "nft", "openssl", "curl", "flock", "setpriv", "unshare", "mount"]

CLIENT, GATEWAY, CLICKHOUSE, CLICKHOUSE_MOVED = "172.30.0.2", "172.30.0.1", "172.30.0.3", "172.30.0.4"
EXCHANGE, EXCHANGE6 = "203.0.113.10", "2001:db8::10"
API = "198.51.100.1"
DNS = "103.86.96.100"  # NordVPN's own
DOCKER_DNS = "127.0.0.11"
SERVERS = {f"us100{n}.nordvpn.com": f"198.51.100.1{n}" for n in (1, 2, 3)}
FIRST, SECOND, THIRD = SERVERS
USER, PASSWORD = "service-user", "service-password"
PORTS = {"udp": 1194, "tcp": 443}

CAPABILITIES = "+net_admin,+setuid,+setgid,+kill,+dac_override"  # as docker-compose.yml gives them

WAIT = 60.0  # seconds after which a condition that does not come true fails the test
_numbers = itertools.count()


@dataclass(frozen=True)
class Packet:
    """A packet that left the client by its outer interface."""

    family: str  # "ip", "ip6" or "other"
    destination: str
    protocol: str  # "udp", "tcp" or a number
    port: int
    frame: bytes
    source_port: int | None = None

    def __str__(self) -> str:
        return f"{self.family} {self.protocol} to {self.destination}:{self.port}, {len(self.frame)} bytes"


class World:
    """Everything outside the client, and the record of what reached it; use as a context manager."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        suffix = f"{os.getpid()}-{next(_numbers)}"
        self.namespace, self.client_namespace = f"vpn-world-{suffix}", f"vpn-client-{suffix}"
        self.api_answers = "well"  # or "not", or "html"
        self.clickhouse = CLICKHOUSE
        self.api_requests: list[str] = []
        self.reached: list[tuple[str, str]] = []  # service, peer's address
        self.vpn_dns_names: list[str] = []
        self.docker_dns_names: list[str] = []
        self._packets: list[Packet] = []
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> World:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._servers):
            self.kill_server(name)
        self._ended.set()
        for thread in self._threads:
            thread.join()
        for namespace in (self.client_namespace, self.namespace):
            subprocess.run(["ip", "netns", "delete", namespace], check=False, capture_output=True)
        shutil.rmtree(f"/etc/netns/{self.client_namespace}", ignore_errors=True)

    def start_server(self, name: str, protocol: str = "udp") -> None:
        """Start an OpenVPN server as NordVPN configures them, and return when it serves."""
        number = name[5]
        log = self.directory / f"{name}.log"
        command = ["ip", "netns", "exec", self.namespace, "openvpn", "--cd", str(self.directory), "--log", str(log)]
        command += ["--local", SERVERS[name], "--port", str(PORTS[protocol])]
        command += ["--proto", protocol.replace("tcp", "tcp-server"), "--dev", f"tun{number}", "--disable-dco"]
        command += ["--server", f"10.8.{number}.0", "255.255.255.0", "--topology", "subnet", "--dh", "none"]
        command += ["--ca", "ca.crt", "--cert", "server.crt", "--key", "server.key", "--tls-auth", "ta.key", "0"]
        command += ["--verify-client-cert", "none", "--username-as-common-name", "--script-security", "2"]
        command += ["--auth-user-pass-verify", str(self.directory / "verify.sh"), "via-file", "--comp-lzo", "no"]
        command += ["--cipher", "AES-256-CBC", "--auth", "SHA512", "--verb", "3", "--ping", "60"]
        pushed = ["redirect-gateway def1", f"dhcp-option DNS {DNS}", "comp-lzo no", "ping 60", "ping-restart 180"]
        for option in pushed + (["explicit-exit-notify"] if protocol == "udp" else []):
            command += ["--push", option]
        self._servers[name] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.wait(f"{name} to serve", lambda: log.exists() and "Initialization Sequence Completed" in log.read_text())

    def kill_server(self, name: str) -> None:
        """End a server without a word to its clients."""
        process = self._servers.pop(name)
        process.kill()
        process.wait()

    def restore_link(self) -> None:
        """Bring the client's outer interface up, with all that goes when it is taken down."""
        client = self.client_namespace
        run("ip", "-n", client, "link", "set", "eth0", "up")
        run("ip", "-n", client, "address", "replace", "fd00:30::2/64", "dev", "eth0", "nodad")
        run("ip", "-n", client, "route", "replace", "default", "via", GATEWAY)
        run("ip", "-n", client, "route", "replace", "default", "via", "fd00:30::1")

    def server_log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text()

    def peers(self, service: str) -> set[str]:
        """The addresses from which a service was reached."""
        return {peer for name, peer in self.reached if name == service}

    def wait(self, what: str, predicate: Callable[[], object]) -> None:
        """Wait until the predicate holds, looking again when something happens, and now and then."""
        deadline = time.monotonic() + WAIT
        with self._changed:
            while not predicate():
                if time.monotonic() > deadline:
                    raise AssertionError(f"waited {WAIT:.0f} s for {what}")
                self._changed.wait(0.1)

    def note(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def packets(self) -> list[Packet]:
        """End the recording, and return what left the client."""
        self._ended.set()
        for thread in self._threads:
            thread.join()
        return self._packets

    def strays(self, answering: int | None = None) -> list[str]:
        """The packets that were neither OpenVPN's to a server, nor for ClickHouse, nor for NordVPN's API.

        Nor from the port `answering`.
        """
        return [str(packet) for packet in self.packets() if packet.source_port != answering and not _is_allowed(packet)]

    def configuration(self, name: str, protocol: str = "udp") -> str:
        """A client configuration as NordVPN publishes them."""
        options = f"""\
# NordVPN-like
client
dev tun
proto {protocol}
remote {SERVERS[name]} {PORTS[protocol]}
resolv-retry infinite
remote-random
nobind
tun-mtu 1500
tun-mtu-extra 32
mssfix 1450
persist-key
persist-tun
ping 15
ping-restart 0
ping-timer-rem
reneg-sec 0
comp-lzo no
remote-cert-tls server
auth-user-pass
verb 3
pull
fast-io
cipher AES-256-CBC
auth SHA512
key-direction 1
"""
        ca, ta = (self.directory / "ca.crt").read_text(), (self.directory / "ta.key").read_text()
        return f"{options}<ca>\n{ca}</ca>\n<tls-auth>\n{ta}</tls-auth>\n"

    def _build(self) -> None:
        world, client = self.namespace, self.client_namespace
        (self.directory / "verify.sh").write_text(
            f'#!/bin/sh\n[ "$(cat "$1")" = \'{USER}\n{PASSWORD}\' ]\n'  # 0 lets the user in
        )
        (self.directory / "verify.sh").chmod(0o755)
        for namespace in (world, client):
            run("ip", "netns", "add", namespace)
            run("ip", "-n", namespace, "link", "set", "lo", "up")
        run("ip", "link", "add", "eth0", "netns", world, "type", "veth", "peer", "name", "eth0", "netns", client)
        for namespace in (world, client):
            run("ip", "-n", namespace, "link", "set", "eth0", "addrgenmode", "none", "up")
        for address in (GATEWAY, CLICKHOUSE, CLICKHOUSE_MOVED):
            run("ip", "-n", world, "address", "add", f"{address}/24", "dev", "eth0")
        for address in (EXCHANGE, API, DNS, *SERVERS.values(), EXCHANGE6):
            run("ip", "-n", world, "address", "add", address, "dev", "lo")
        run("ip", "-n", world, "address", "add", "fd00:30::1/64", "dev", "eth0", "nodad")
        run("ip", "-n", client, "address", "add", f"{CLIENT}/24", "dev", "eth0")
        self.restore_link()

        # `ip netns exec` mounts these over the client's /etc, as Docker does.
        etc = Path(f"/etc/netns/{client}")
        etc.mkdir(parents=True)
        (etc / "resolv.conf").write_text(f"nameserver {DOCKER_DNS}\noptions ndots:0\n")
        (etc / "hosts").write_text("127.0.0.1 localhost\n")

        with inside(client):
            sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))  # ETH_P_ALL
            sniffer.setsockopt(socket.SOL_SOCKET, 33, 16_000_000)  # SO_RCVBUFFORCE: lose nothing
            sniffer.bind(("eth0", 0x0003))
            docker_dns = _bound(socket.SOCK_DGRAM, DOCKER_DNS, 53)
        with inside(world):
            vpn_dns = _bound(socket.SOCK_DGRAM, DNS, 53)
            services = {
                "exchange": _bound(socket.SOCK_STREAM, EXCHANGE, 80),
                "exchange6": _bound(socket.SOCK_STREAM, EXCHANGE6, 80),
                "clickhouse": _bound(socket.SOCK_STREAM, CLICKHOUSE, 9000),
                "moved clickhouse": _bound(socket.SOCK_STREAM, CLICKHOUSE_MOVED, 9000),
            }
            api = _bound(socket.SOCK_STREAM, API, 80)
        self._thread(lambda: self._record(sniffer))
        self._thread(lambda: self._answer_names(vpn_dns, self.vpn_dns_names, lambda: {"exchange.test": EXCHANGE}))
        host_knows = {"exchange.test": EXCHANGE, "vpn.example": SERVERS[FIRST]}
        self._thread(
            lambda: self._answer_names(
                docker_dns, self.docker_dns_names, lambda: {**host_knows, "clickhouse": self.clickhouse}
            )
        )
        for name, listener in services.items():
            self._serve(name, listener)
        self._serve_api(api)

    def _thread(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target)
        self._threads.append(thread)
        thread.start()

    def _record(self, sniffer: socket.socket) -> None:
        sniffer.settimeout(0.1)
        with sniffer:
            while True:
                try:
                    frame, (_, ethertype, kind, *_) = sniffer.recvfrom(65536)
                except OSError as error:  # nothing came, or the link is down
                    if self._ended.is_set() and error.errno != errno.ENETDOWN:
                        return
                    continue
                if kind == 4:  # PACKET_OUTGOING
                    self._packets.append(_packet(ethertype, frame))
                    self.note()

    def _serve(self, name: str, listener: socket.socket) -> None:
        def accept() -> None:
            listener.settimeout(0.1)
            with listener:
                while not self._ended.is_set():
                    with contextlib.suppress(OSError):
                        connection, peer = listener.accept()
                        with connection:
                            connection.settimeout(0.5)
                            self.reached.append((name, peer[0]))
                            self.note()
                            connection.recv(100)

        self._thread(accept)

    def _answer_names(self, server: socket.socket, asked: list[str], table: Callable[[], dict[str, str]]) -> None:
        server.settimeout(0.1)
        with server:
            while not self._ended.is_set():
                with contextlib.suppress(OSError):
                    query, peer = server.recvfrom(512)
                    end = query.index(b"\0", 12)
                    labels, at = [], 12
                    while at < end:
                        labels.append(query[at + 1 : at + 1 + query[at]].decode())
                        at += 1 + query[at]
                    name, kind = ".".join(labels), int.from_bytes(query[end + 1 : end + 3])
                    asked.append(name)
                    self.note()
                    address = table().get(name)
                    answers = [socket.inet_aton(address)] if address and kind == 1 else []
                    head = query[:2] + struct.pack(">5H", 0x8180 if address else 0x8183, 1, len(answers), 0, 0)
                    records = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 5, 4) + data for data in answers)
                    server.sendto(head + query[12 : end + 5] + records, peer)

    def _serve_api(self, listener: socket.socket) -> None:
        world = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                world.api_requests.append(self.path)
                world.note()
                if world.api_answers == "not":
                    self.send_error(503)
                    return
                body = "<html><body>Too many requests</body></html>" if world.api_answers == "html" else self.answer()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body.encode())

            def answer(self) -> str:
                if self.path.startswith("/files/"):
                    name, protocol, _ = self.path.rsplit("/", 1)[1].rsplit(".", 2)
                    return world.configuration(name, protocol)
                if self.path.startswith("/v1/servers/countries"):
                    return json.dumps([{"id": 81, "name": "Germany", "code": "DE"}])
                # what is not asked for must be passed over
                hosts = ["../etc/passwd", "us1000.nordvpn.com;reboot", "de1.nordvpn.com", *SERVERS]
                return json.dumps([{"hostname": host, "status": "online", "load": 7} for host in hosts])

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer((API, 80), Handler, bind_and_activate=False)
        server.socket.close()
        server.socket = listener
        self._thread(lambda: server.serve_forever(0.1))

        def close() -> None:
            self._ended.wait()
            server.shutdown()
            server.server_close()

        self._thread(close)


class Client:
    """A container, as far as the scripts can tell: what it wrote survives `stop` and the next `start`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.lines: list[str] = []
        self.tmp = Path(tempfile.mkdtemp(prefix="vpn-client-"))
        self.tmp.chmod(0o1777)
        (self.tmp / "shm").mkdir()
        shutil.copytree(SCRIPTS, self.tmp / "docker")
        shutil.copy(HERE / "collector.sh", self.tmp)
        self._process: subprocess.Popen[str] | None = None

    def start(self, capabilities: str = CAPABILITIES, **environment: str) -> None:
        """Start the entrypoint with this environment; an empty value takes a default away."""
        defaults = {
            "PATH": f"{Path(sys.executable).resolve().parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            "NORDVPN_USER": USER,
            "NORDVPN_PASS": PASSWORD,
            "NORDVPN_API_URL": f"http://{API}",
            "NORDVPN_CONFIG_URL": f"http://{API}/files",
            "VPN_COUNTRY": "us",
            "VPN_CACHE_DIR": "/tmp/cache",
            "CLICKHOUSE_HOST": "clickhouse",
            "COLLECTOR_USER": "nobody",
            "EXCHANGE": EXCHANGE,
            "EXCHANGE6": EXCHANGE6,
            "ENDPOINTS": " ".join(SERVERS.values()),
        }
        given = {name: value for name, value in {**defaults, **environment}.items() if value}
        mounts = 'mount --bind "$0/shm" /dev/shm && mount --bind "$0" /tmp; '
        mounts += '[ ! -e /dev/mqueue ] || mount -t tmpfs none /dev/mqueue; exec "$@"'
        command = ["ip", "netns", "exec", self.world.client_namespace, "unshare", "--fork", "--pid", "--kill-child"]
        command += ["--mount", "--mount-proc", "bash", "-c", mounts, str(self.tmp)]
        command += ["setpriv", f"--bounding-set=-all,{capabilities}", "--inh-caps=-all"]
        command += ["/tmp/docker/entrypoint.sh", "/tmp/collector.sh"]
        self.lines.clear()
        self._process = subprocess.Popen(
            command, env=given, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._reader = threading.Thread(target=self._read, args=[self._process])
        self._reader.start()

    def wait_for(self, text: str) -> None:
        """Wait for a line that contains the text."""
        with contextlib.suppress(AssertionError):  # the next lines say more
            self.world.wait(text, lambda: text in self.output or not self._reader.is_alive())
        if text not in self.output:
            raise AssertionError(f"the client did not say '{text}' but:\n{self.output}")

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait(self) -> int:
        """Wait for the end of the container, and return its exit code."""
        assert self._process
        code = self._process.wait(WAIT)
        self._reader.join()
        print(self.output)
        return code

    def terminate(self) -> int:
        """Do what `docker stop` does, and return the exit code."""
        os.kill(self.pid(), signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        if self._process:
            self._process.kill()  # takes PID 1, and so all its processes, with it
            self._process.wait()

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.tmp)

    def pid(self, name: str = "") -> int:
        """The process id, on the host, of the container's first process, or of its first with this name."""
        assert self._process
        found = {self._process.pid}
        for stat in sorted(Path("/proc").glob("[0-9]*/stat"), key=lambda path: int(path.parent.name)):
            with contextlib.suppress(OSError):
                comm, _, rest = stat.read_text().partition("(")[2].rpartition(")")
                if int(rest.split()[1]) in found:
                    if name in ("", comm):
                        return int(stat.parent.name)
                    found.add(int(stat.parent.name))
        raise AssertionError(f"no process {name} in the client; it said:\n{self.output}")

    def etc(self, name: str) -> str:
        return Path(f"/etc/netns/{self.world.client_namespace}/{name}").read_text()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        for line in process.stdout:
            self.lines.append(line.rstrip("\n"))
            self.world.note()


def make_certificates(directory: Path) -> None:
    """Make ca.crt, server.crt, server.key and ta.key."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    run("openssl", "req", "-x509", *key, "-subj", "/CN=Test CA", "-keyout", directory / "ca.key", "-out",
        directory / "ca.crt")  # fmt: skip
    run("openssl", "req", "-x509", *key, "-subj", "/CN=server", "-CA", directory / "ca.crt", "-CAkey",
        directory / "ca.key", "-addext", "extendedKeyUsage=serverAuth", "-addext", "basicConstraints=CA:FALSE",
        "-addext", "keyUsage=digitalSignature", "-keyout", directory / "server.key", "-out",
        directory / "server.crt")  # fmt: skip
    run("openvpn", "--genkey", "secret", directory / "ta.key")


def run(*command: str | Path) -> None:
    words = [str(word) for word in command]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    if result.returncode:
        raise AssertionError(f"{' '.join(words)}: {result.stdout}{result.stderr}")


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Let the sockets that this thread opens belong to the namespace; they stay there."""
    with Path("/proc/thread-self/ns/net").open() as home, Path(f"/run/netns/{namespace}").open() as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(home.fileno())


def _enter(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, 0x40000000):  # CLONE_NEWNET
        raise OSError(ctypes.get_errno(), "setns")


def _bound(kind: socket.SocketKind, address: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    bound.bind((address, port))
    if kind == socket.SOCK_STREAM:
        bound.listen(100)
    return bound


def _packet(ethertype: int, frame: bytes) -> Packet:
    if ethertype == 0x0800:
        transport = 14 + (frame[14] & 0x0F) * 4
        protocol = {6: "tcp", 17: "udp"}.get(frame[23], str(frame[23]))
        source_port, port = (int.from_bytes(frame[at : at + 2]) for at in (transport, transport + 2))
        return Packet("ip", socket.inet_ntoa(frame[30:34]), protocol, port, frame, source_port)
    if ethertype == 0x86DD:
        return Packet("ip6", socket.inet_ntop(socket.AF_INET6, frame[38:54]), str(frame[20]), 0, frame)
    return Packet("arp" if ethertype == 0x0806 else "other", "", str(ethertype), 0, frame)


def _is_allowed(packet: Packet) -> bool:
    if packet.family != "ip":  # the kernel tells its groups to ff02::16 as soon as the link is up
        return packet.family == "arp" or packet.destination == "ff02::16"
    if packet.destination in SERVERS.values():
        return packet.port == PORTS.get(packet.protocol) and b"LEAK" not in packet.frame
    service = (packet.destination, packet.protocol, packet.port)
    return service in {(CLICKHOUSE, "tcp", 9000), (CLICKHOUSE_MOVED, "tcp", 9000), (API, "tcp", 80)}
