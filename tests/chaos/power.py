"""What a power loss leaves of a directory: what was synced, and of the rest what chance wants.

In: the real syncs of the processes that write there (tests.chaos.syncs). Out: the directory as it is found once the
power is back. A file that was synced has at least the contents that it had then, and with each sync all names up to
then are on the disk, as ext4 and XFS have it. Of what was written since, the system may have put any page on the disk,
or none.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.chaos.syncs import Syncs

_PAGE = 4096


@dataclass
class _Names:
    """All names below a directory."""

    directories: list[Path] = field(default_factory=list)
    links: dict[Path, Path] = field(default_factory=dict)
    files: dict[Path, int] = field(default_factory=dict)
    """By name, the inodes."""


class PowerLoss:
    """Watches over one directory."""

    def __init__(self, root: Path, socket: Path) -> None:
        """`root` is the directory, as this process sees it; `socket` is a path for the watched processes to call."""
        self._root = root
        self._lock = threading.Lock()
        self._syncs = Syncs(socket, self._synced)
        self.prefix = self._syncs.prefix
        """Has to stand before the command of a process that writes there."""
        self.write_back()

    def close(self) -> None:
        """Watch no more."""
        self._syncs.close()

    def write_back(self) -> None:
        """Have all on the disk that was written so far: as the system does by itself sooner or later."""
        with self._lock:
            self._names = self._look()
            self._contents = dict(self._read(self._names))

    def happens(self, chance: Random) -> None:
        """Leave what a power loss at this moment leaves. All processes that write there have been killed."""
        with self._lock:
            written = dict(self._read(self._look()))
            for each in self._root.iterdir():
                if each.is_dir() and not each.is_symlink():
                    shutil.rmtree(each)
                else:
                    each.unlink()
            for directory in self._names.directories:
                (self._root / directory).mkdir()
            for link, target in self._names.links.items():
                (self._root / link).symlink_to(target)
            for file, inode in self._names.files.items():
                synced = self._contents.get(inode, b"")
                (self._root / file).write_bytes(_torn(synced, written.get(inode, synced), chance))
        self.write_back()

    def _synced(self, inode: int | None, read: Callable[[], bytes]) -> None:
        if inode is None:
            self.write_back()
            return
        with self._lock:
            self._names = self._look()
            known = set(self._names.files.values())
            self._contents = {each: content for each, content in self._contents.items() if each in known}
            if inode in known:
                self._contents[inode] = read()

    def _look(self) -> _Names:
        names = _Names()
        below = [self._root]
        while below:
            try:
                with os.scandir(below.pop()) as entries:
                    for entry in entries:
                        name = Path(entry.path).relative_to(self._root)
                        if entry.is_symlink():
                            names.links[name] = Path(entry.path).readlink()
                        elif entry.is_dir():
                            names.directories.append(name)
                            below.append(Path(entry.path))
                        else:
                            names.files[name] = entry.inode()
            except FileNotFoundError:  # it was just removed
                continue
        return names

    def _read(self, names: _Names) -> Iterator[tuple[int, bytes]]:
        for file, inode in names.files.items():
            try:
                yield inode, (self._root / file).read_bytes()
            except FileNotFoundError:
                continue


def _torn(synced: bytes, written: bytes, chance: Random) -> bytes:
    """Return what of a file is on the disk that was `written`, and of which only `synced` was synced."""
    if synced == written:
        return synced
    share = chance.choice([0, chance.random(), 1])  # of the pages that are on the disk
    size = chance.choice([len(synced), chance.randint(*sorted([len(synced), len(written)])), len(written)])
    old, new = (content.ljust(size, b"\0") for content in (synced, written))
    pages = (new if chance.random() < share else old for _ in range(0, size, _PAGE))
    return b"".join(page[at : at + _PAGE] for at, page in zip(range(0, size, _PAGE), pages, strict=True))[:size]
