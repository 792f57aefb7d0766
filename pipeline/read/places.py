"""Where an export's files go: a folder, or object storage, such as s3://bucket/prefix.

In: files that were written whole, in a folder of this machine. Out: the same under their final names. Promise: there, a
file is whole or not there, whatever ends when; its record, by which the next export knows it, is removed only when all
of the new file has arrived, and is put after it.

In object storage, records are where they are in a folder, below ``.export``, and so are files on their way: what has
arrived there, with as many bytes as were sent, is given its name by the storage itself. What is being written is in
this machine's folder for temporary files (TMPDIR), as is the lock: it keeps out no export of another machine or user.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from pipeline.files import sync

_SENT_AT_ONCE = 8 << 20  # bytes
_LONGEST = 400  # characters of what object storage answers; without Java, hdfs:// has pages to say
_REFUSALS = (OSError, pa.ArrowException)  # the second where Google's keys are none
_GIVE_UP = "retry_limit_seconds=15"  # Google's library goes on for a quarter of an hour, and says nothing meanwhile
_GOOGLE = re.compile(r"google::cloud::Status\((\w+): (?:.*(?:last message of|error message was:) )?(.*?) *error_info=")
_KEYS = "check the keys and what they may do: read, list, write and delete"
_CHECK = {
    "AWS Error ACCESS_DENIED ": _KEYS,
    "AWS Error INVALID_ACCESS_KEY_ID ": "check AWS_ACCESS_KEY_ID",
    "AWS Error SIGNATURE_DOES_NOT_MATCH ": "check AWS_SECRET_ACCESS_KEY",
    "AWS Error NO_SUCH_BUCKET ": "make the bucket first",
    "AWS Error NETWORK_CONNECTION ": "try again; for others than AWS, AWS_ENDPOINT_URL is where they are",
    "Google is PERMISSION_DENIED: ": _KEYS,
    "Google is UNAUTHENTICATED: ": _KEYS,
    "Google is NOT_FOUND: ": "make the bucket first",
    "Google is UNAVAILABLE: ": "try again, and check GOOGLE_APPLICATION_CREDENTIALS, the file of the keys",
    "credentials file": "check GOOGLE_APPLICATION_CREDENTIALS",
}
"""What to do about what S3, or Google, answers."""


class Paths(NamedTuple):
    """Where a day's file is to be, and its record, from the place's root on; where both are until they are whole."""

    file: PurePosixPath
    record: PurePosixPath
    new_file: Path
    new_record: Path


class Folder:
    """A folder of a disk."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.aside = root / ".export"
        """Where files are until they are whole."""

    def __str__(self) -> str:
        return str(self._root)

    def name(self, path: PurePosixPath) -> str:
        """Return what a file is called before the user."""
        return str(self._root / path)

    def size(self, path: PurePosixPath) -> int | None:
        """Return how many bytes a file has; None where there is none. Raises OSError."""
        with suppress(FileNotFoundError):
            return (self._root / path).stat().st_size
        return None

    def read(self, path: PurePosixPath) -> bytes | None:
        """Return what is in a file; None where there is none. Raises OSError."""
        with suppress(FileNotFoundError):
            return (self._root / path).read_bytes()
        return None

    def names(self, directory: PurePosixPath) -> list[str]:
        """Return the names of what is in a directory; none where there is no such directory. Raises OSError."""
        with suppress(FileNotFoundError):
            return [path.name for path in (self._root / directory).iterdir()]
        return []

    def publish(self, paths: Paths) -> None:
        """Give a file, which is on the disk, and its record their names. Raises OSError."""
        file, record = self._root / paths.file, self._root / paths.record
        file.parent.mkdir(parents=True, exist_ok=True)
        record.unlink(missing_ok=True)  # which must not speak for the new file
        paths.new_file.replace(file)
        paths.new_record.replace(record)
        for directory in (file.parent, file.parent.parent, record.parent):
            sync(directory)


class Bucket:
    """A bucket of object storage, or what is below a prefix in it. The same as `Folder`."""

    def __init__(self, uri: str) -> None:
        """Take an address as pyarrow.fs has it. Raises ValueError for one that cannot be used, and OSError."""
        scheme = urlsplit(uri).scheme
        is_google = scheme in ("gs", "gcs")
        limit = ("&" if "?" in uri else "?") + _GIVE_UP if is_google and "retry_limit_seconds=" not in uri else ""
        with _in_one_line((OSError,)):  # what else is raised is a ValueError
            try:
                self._storage, root = fs.FileSystem.from_uri(uri + limit)
            except pa.ArrowInvalid as error:
                if "Unrecognized filesystem" not in str(error):
                    raise
                why = f"{scheme}:// is no place to export to: give a folder, s3://bucket/prefix, gs://bucket/prefix"
                raise ValueError(why) from None
        self._root = PurePosixPath(root)
        if not root:
            raise ValueError(f"{uri} names no bucket: give such as {scheme}://bucket/prefix")
        self._name = f"{scheme}://{self._root}"
        there = Path(tempfile.gettempdir(), f"mexc-export-{os.getuid()}")
        there.mkdir(mode=0o700, exist_ok=True)
        if there.stat().st_uid != os.getuid():
            raise OSError(f"{there} is somebody else's: set TMPDIR to a folder of yours")
        self.aside = there / hashlib.sha256(self._name.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return self._name

    def name(self, path: PurePosixPath) -> str:
        return f"{self._name}/{path}"

    def size(self, path: PurePosixPath) -> int | None:
        with _in_one_line():
            found: int | None = self._storage.get_file_info(self._at(path)).size
        return found

    def read(self, path: PurePosixPath) -> bytes | None:
        if self.size(path) is None:
            return None
        with _in_one_line(), self._storage.open_input_stream(self._at(path)) as file:
            content: bytes = file.read()
        return content

    def names(self, directory: PurePosixPath) -> list[str]:
        with _in_one_line():
            found = self._storage.get_file_info(fs.FileSelector(self._at(directory), allow_not_found=True))
        return [each.base_name for each in found]

    def publish(self, paths: Paths) -> None:
        on_its_way = paths.record.with_name(paths.new_file.name)
        self._send(paths.new_file, on_its_way)
        if self.size(paths.record) is not None:
            with _in_one_line():
                self._storage.delete_file(self._at(paths.record))
        with _in_one_line():
            self._storage.move(self._at(on_its_way), self._at(paths.file))
        self._send(paths.new_record, paths.record)
        for sent in (paths.new_file, paths.new_record):
            sent.unlink()

    def _send(self, file: Path, path: PurePosixPath) -> None:
        # Not by fs.copy_files, which says nothing of an upload that has failed. A stream that is left by an interrupt
        # may make a file of its half: hence the name that is not the final one.
        with (
            _in_one_line(),
            file.open("rb") as source,
            self._storage.open_output_stream(self._at(path), compression=None) as sink,
        ):
            shutil.copyfileobj(source, sink, _SENT_AT_ONCE)
        if (arrived := self.size(path)) != (sent := file.stat().st_size):
            raise OSError(f"{arrived or 0:,} of {sent:,} bytes have arrived, try again")

    def _at(self, path: PurePosixPath) -> str:
        return str(self._root / path)


Place = Folder | Bucket


def without_keys(text: str) -> str:
    """Return a text without the keys that an address in it may have: s3://KEY:SECRET@bucket."""
    return re.sub(r"://[^\s/@]+:\S*@", "://***@", text)


@contextmanager
def _in_one_line(kinds: tuple[type[Exception], ...] = _REFUSALS) -> Iterator[None]:
    """Say in a line what object storage answers, and what to do, as an OSError."""
    try:
        yield
    except kinds as error:
        text = " ".join(str(getattr(error, "strerror", None) or error).split())
        if found := _GOOGLE.search(text):
            text = f"the answer of Google is {found[1]}: {found[2]}"
        advice = next((advice for what, advice in _CHECK.items() if what in text), "")
        text = textwrap.shorten(without_keys(text), _LONGEST, placeholder=" ...")
        raise OSError(f"{text}; {advice}" if advice else text) from None
