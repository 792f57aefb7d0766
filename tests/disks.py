"""Small disks for tests, which only the processes of the test see and which vanish with it.

They are tmpfs in a mount namespace, held by a process that ends when the test does. The superuser may mount them;
another user needs a kernel that lets users have namespaces of their own.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from config import PROJECT

_HOLD = """
size=$1; shift
for directory; do mount -t tmpfs -o "size=$size" tmpfs "$directory" || exit; done
echo mounted
exec cat
"""


class Disks:
    """Directories, each of them a disk of its own."""

    def __init__(self, pid: int) -> None:
        namespaces = ["--mount"] if os.geteuid() == 0 else ["--mount", "--user", "--preserve-credentials"]
        self.prefix = ["nsenter", f"--target={pid}", *namespaces, "--wd"]
        """For `Stack.prefix`: lets a process see the disks."""
        self._root = Path(f"/proc/{pid}/root")

    def seen(self, path: Path) -> Path:
        """Return where the test finds what its processes have at `path`."""
        return self._root / path.relative_to("/")

    @contextmanager
    def full(self, directory: Path, spare: int = 0) -> Iterator[None]:
        """Let no more than `spare` bytes be free on the disk of `directory`, for as long as the context lasts."""
        filler = self.seen(directory) / "filler"
        try:
            with filler.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(1 << 16))
            os.truncate(filler, max(0, filler.stat().st_size - spare))
            yield
        finally:
            filler.unlink()


@contextmanager
def small_disks(size: str, *directories: Path) -> Iterator[Disks]:
    """Give disks of `size` (such as 8m) at `directories`, which are made."""
    for directory in directories:
        directory.mkdir(parents=True, exist_ok=True)
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--user", "--map-root-user"]
    holder = subprocess.Popen(
        [*unshare, "sh", "-c", _HOLD, "sh", size, *map(str, directories)],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "mounted\n", "no tmpfs can be mounted here"
        yield Disks(holder.pid)
    finally:
        holder.communicate()
