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
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests.chaos.syncs import Syncs

_PAGE = 4096
_SETTLED = 50_000_000  # nanoseconds after which no change of a directory can have the same time of it any more


@dataclass
class _Names:
    """All names below a directory."""

    directories: list[Path] = field(default_factory=list)
    links: dict[Path, Path] = field(default_factory=dict)
    files: dict[Path, int] = field(default_factory=dict)
    """By name, the inodes."""


class _Listing(NamedTuple):
    """What is in one directory."""

    status: tuple[int, int]
    """The directory's inode and when it was changed."""
    is_settled: bool
    """Whether it is as it was as long as its status is."""
    directories: list[Path]
    links: dict[Path, Path]
    files: dict[Path, int]


class PowerLoss:
    """Watches over one directory."""

    def __init__(self, root: Path, socket: Path) -> None:
        """`root` is the directory, as this process sees it; `socket` is a path for the watched processes to call."""
        self._root = root
        self._lock = threading.Lock()
        self._listings: dict[Path, _Listing] = {}
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
        while True:
            with suppress(FileNotFoundError):  # one was renamed meanwhile, or removed: it may have another name now
                return self._look_once()

    def _look_once(self) -> _Names:
        names = _Names()
        before, self._listings = self._listings, {}
        below = [Path()]
        while below:
            directory = below.pop()
            self._listings[directory] = listing = self._list(directory, before.get(directory))
            names.directories += listing.directories
            names.links |= listing.links
            names.files |= listing.files
            below += listing.directories
        return names

    def _list(self, directory: Path, before: _Listing | None) -> _Listing:
        """Return what is in a directory: as it was `before`, where that is known. A history has thousands of files."""
        path = self._root / directory
        now, status = time.time_ns(), path.stat()
        known = status.st_ino, status.st_mtime_ns
        if before and before.is_settled and before.status == known:
            return before
        found = _Listing(known, now - status.st_mtime_ns > _SETTLED, [], {}, {})
        with os.scandir(path) as entries:
            for entry in entries:
                name = directory / entry.name
                if entry.is_symlink():
                    found.links[name] = Path(entry.path).readlink()
                elif entry.is_dir():
                    found.directories.append(name)
                else:
                    found.files[name] = entry.inode()
        return found

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
