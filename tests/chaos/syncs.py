"""Each fsync of a process, told before it is done.

    python3 -m tests.chaos.syncs SOCKET COMMAND ...

This hands a descriptor over the SOCKET, and runs COMMAND in its own place. On the descriptor the kernel tells of each
fsync, fdatasync, sync and syncfs of COMMAND, and holds it until it is answered: seccomp's user notification, which
Linux has since 5.5, and for which nobody has to be the superuser. `Syncs` is the other end.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import select
import socket
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_FSYNC, _FDATASYNC, _SYNC, _SYNCFS, _SECCOMP = {
    "x86_64": (74, 75, 162, 306, 317),
    "aarch64": (82, 83, 81, 267, 277),
}[platform.machine()]

# linux/prctl.h, linux/filter.h, linux/seccomp.h
_PR_SET_NO_NEW_PRIVS = 38
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_SET_MODE_FILTER, _NEW_LISTENER = 1, 8
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_NOTE = struct.Struct("=QIIiIQ6Q")  # id, pid, flags; number, architecture, instruction, arguments of the call
_ANSWER = struct.Struct("=QqiI")  # id, value, error, flags
_CONTINUE = 1


class Syncs:
    """Is told of each sync of the processes that were started with `prefix`."""

    def __init__(self, path: Path, synced: Callable[[int | None, Callable[[], bytes]], None]) -> None:
        """`path` is where the socket is to be. `synced` is called before each sync.

        It gets the inode of the file or directory, and what reads the file; None for the inode where all are synced.
        """
        self._synced = synced
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self.prefix = [sys.executable, "-m", "tests.chaos.syncs", str(path)]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more processes."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                with connection:
                    _, (listener,), _, _ = socket.recv_fds(connection, 1, 1)
                threading.Thread(target=self._serve, args=(listener,), daemon=True).start()

    def _serve(self, listener: int) -> None:
        """Answer all that comes until the process ends."""
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        while not poll.poll()[0][1] & select.POLLHUP:
            note = bytearray(_NOTE.size)
            with suppress(OSError):  # it was killed, or stopped, and then it calls again
                fcntl.ioctl(listener, _RECEIVE, note)
                number, pid, _, call, _, _, descriptor, *_ = _NOTE.unpack(note)
                self._tell(call, Path(f"/proc/{pid}/fd/{descriptor}"))
                fcntl.ioctl(listener, _SEND, _ANSWER.pack(number, 0, 0, _CONTINUE))
        os.close(listener)

    def _tell(self, call: int, file: Path) -> None:
        with suppress(FileNotFoundError):  # an invalid descriptor
            self._synced(None if call in (_SYNC, _SYNCFS) else file.stat().st_ino, file.read_bytes)


def _listener() -> int:
    """Have the kernel tell of this process's syncs from now on, also of what it runs; return where."""
    calls = (_FSYNC, _FDATASYNC, _SYNC, _SYNCFS)
    program = [
        (_LOAD_WORD, 0, 0, 0),
        *((_JUMP_IF_EQUAL, len(calls) - n, 0, call) for n, call in enumerate(calls)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _NOTIFY),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        listener: int = libc.syscall(_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, header)
        if listener >= 0:
            return listener
    raise OSError(ctypes.get_errno(), "The kernel tells nobody of syncs")


def main() -> None:
    """Run the command."""
    _, path, *command = sys.argv
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [b"."], [_listener()])
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
