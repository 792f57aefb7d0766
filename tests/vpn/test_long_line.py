"""The history at the end of a tunnel: packets take 50 ms each way, or vanish. The feed goes on, all rows arrive once.

The tunnel is a TUN device, for not every kernel has netem.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.messages import parse_frame
from tests.stack import Stack, eventually, open_stack
from tests.vpn.vpnlab import inside, run

FAR = "127.0.0.2"
DELAY = 0.05  # seconds each way
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000


class Tunnel:
    """A TUN device to FAR, which is 127.0.0.1 at the end of a long line: each packet comes back as if sent from there.

    With source and destination exchanged, checksums stay right. For use in a network namespace of its own.
    """

    def __init__(self) -> None:
        self._device = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(self._device, TUNSETIFF, struct.pack("16sH", b"line0", IFF_TUN | IFF_NO_PI))
        self.is_dead = False
        self.carried = 0
        self._ended = threading.Event()
        for command in (
            "ip address del 127.0.0.1/8 dev lo",
            "ip address add 127.0.0.1/32 dev lo",
            "ip link set line0 up",
            f"ip route add {FAR} dev line0 src 127.0.0.1",
        ):
            run(*command.split())
        for name in ("all", "line0"):
            (settings := Path("/proc/sys/net/ipv4/conf") / name).joinpath("route_localnet").write_text("1")
            settings.joinpath("rp_filter").write_text("0")
        self._thread = threading.Thread(target=self._carry)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        os.close(self._device)

    def _carry(self) -> None:
        under_way: deque[tuple[float, bytes]] = deque()
        while not self._ended.is_set():
            wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else 0.1
            if select.select([self._device], [], [], wait)[0]:
                packet = os.read(self._device, 65536)
                if packet[0] >> 4 == 4:
                    swapped = packet[:12] + packet[16:20] + packet[12:16] + packet[20:]
                    under_way.append((time.monotonic() + DELAY, swapped))
            while under_way and under_way[0][0] <= time.monotonic():
                _, packet = under_way.popleft()
                if not self.is_dead:
                    os.write(self._device, packet)
                    self.carried += 1


@pytest.fixture
def tunnel() -> Iterator[Tunnel]:
    """Be in a namespace with a tunnel, and let what is started be there, too."""
    namespace = f"line{os.getpid()}"
    run("ip", "netns", "add", namespace)
    try:
        run("ip", "-n", namespace, "link", "set", "lo", "up")
        with inside(namespace):
            opened = Tunnel()
            try:
                yield opened
            finally:
                opened.close()
    finally:
        run("ip", "netns", "del", namespace)


def in_history(stack: Stack) -> list[tuple[int, str, str]]:
    query = "SELECT toUnixTimestamp64Milli(ts), toString(mt), m FROM mexc_data.btc_history ORDER BY n"
    return [tuple(row) for row in stack.query(query)]


@pytest.mark.vpn
def test_a_tunnel_of_100_ms_that_dies(tunnel: Tunnel, tmp_path: Path) -> None:
    with open_stack(tmp_path) as stack:
        stack.env |= {"HISTORY": "1", "HISTORY_INTERVAL": "1"}
        stack.clickhouse()
        stack.setup()
        exchange = stack.exchange("--rate", 50)
        collector = stack.collector(HISTORY_HOST=FAR)
        eventually(lambda: len(in_history(stack)) > 0, "rows in the history")
        assert tunnel.carried > 10
        for _ in range(2):
            tunnel.is_dead = True
            time.sleep(2 * DELAY)  # what was under way
            there, before = len(in_history(stack)), stack.count()
            eventually(lambda before=before: stack.count() > before + 100, "rows in the table meanwhile")  # type: ignore[misc]
            tunnel.is_dead = False
            eventually(lambda there=there: len(in_history(stack)) > there, "rows in the history again")  # type: ignore[misc]
        exchange.process.stop()
        rows = [row for raw in exchange.sent("BTC_USDT") for row in parse_frame(raw, "BTC_USDT", 0).rows]
        sent = [(row.ts_ms, row.mt, row.m) for row in rows]
        eventually(lambda: len(in_history(stack)) >= len(sent) <= stack.count(), "all rows in both tables")
        assert in_history(stack) == stack.rows() == sent
        assert collector.stop() == 0
        assert "Traceback" not in collector.output
