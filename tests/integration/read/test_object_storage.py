"""Exports into a bucket of moto's: the files that a folder would have, whole or not there, and never fewer rows.

Google's storage is that of gcp-storage-emulator.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import polars
import pytest
from pyarrow import fs

from tests.proxy import Proxy, open_proxy
from tests.stack import PATIENCE, Process, Stack, eventually, free_port
from tests.web import serving

pytestmark = pytest.mark.timeout(300)

DAY_MS = 86_400_000
START_MS = 1_790_812_800_000  # 2026-10-01
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
DEAL = (
    "concat(toString(60000 + rand() % 99999 / 10), '|', toString(rand(1) % 9999 + 1), '|', toString(rand(2) % 2 + 1))"
)
MANY = 200_000  # deals of a day whose file is larger than what the cut connections let pass
PASSED = 200_000  # bytes


class Storage:
    """Object storage with one bucket, behind a proxy."""

    def __init__(self, stack: Stack, proxy: Proxy, port: int) -> None:
        self.proxy, self._port, self._stack = proxy, port, stack
        self.env = KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"}
        options = {"endpoint_override": f"127.0.0.1:{port}", "scheme": "http", "region": "us-east-1"}
        self.files = fs.S3FileSystem(access_key="key", secret_key="secret", **options)

    def post(self, path: str, content: str = "", method: str = "POST") -> None:
        """Have the storage itself do something."""
        url = f"http://127.0.0.1:{self._port}{path}"
        request = urllib.request.Request(url, content.encode(), {"Content-Type": "text/plain"}, method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE):
            pass

    def tree(self) -> dict[str, bytes]:
        """Return all that is in the bucket."""
        return tree(self.files)

    @contextmanager
    def checking(self) -> Iterator[None]:
        """Let keys do what they may and no more, for as long as the context lasts."""
        self.post("/moto-api/reset-auth", "0")
        try:
            yield
        finally:
            self.post("/moto-api/reset-auth", "inf")

    def client(self, service: str) -> Any:
        """Return what manages the storage, with all rights."""
        url = f"http://127.0.0.1:{self._port}"
        return boto3.client(service, "us-east-1", None, False, None, url, KEYS["AWS_ACCESS_KEY_ID"], "secret")

    def keys_of(self, policy: str) -> dict[str, str]:
        """Return the keys of a new user, who may do what the policy says."""
        iam = self.client("iam")
        iam.create_user(UserName="exporter")
        iam.put_user_policy(UserName="exporter", PolicyName="buckets", PolicyDocument=policy)
        made = iam.create_access_key(UserName="exporter")["AccessKey"]
        return {"AWS_ACCESS_KEY_ID": made["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": made["SecretAccessKey"]}

    @contextmanager
    def cutting(self) -> Iterator[None]:
        """Let no connection bring more than some bytes, for as long as the context lasts."""
        is_over = threading.Event()

        def arm() -> None:
            cuts = -1
            while not is_over.wait(0.001):
                if self.proxy.cuts != cuts:
                    cuts = self.proxy.cuts
                    self.proxy.cut_after("to server", PASSED)

        thread = threading.Thread(target=arm)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()
            self.proxy.cut_after("to server", 1 << 60)


def tree(files: Any) -> dict[str, bytes]:
    """Return all that is in the bucket, by name, but for what only says that there is a folder."""
    return {
        info.path.removeprefix("bucket/"): files.open_input_stream(info.path, compression=None).read()
        for info in files.get_file_info(fs.FileSelector("bucket", recursive=True))
        if info.is_file
    }


def policy(effect: str, *actions: str, **more: str) -> str:
    """Return what S3 has for "these may be done", or not."""
    statement = {"Effect": effect, "Action": actions, "Resource": "*", **more}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


@pytest.fixture(scope="module")
def server(served: Stack) -> Iterator[tuple[Proxy, int]]:
    port = free_port()
    served.start("-m", "moto.server", "-p", port).wait_for("Running on")
    with open_proxy(port) as proxy:
        yield proxy, port


@pytest.fixture
def storage(empty: Stack, server: tuple[Proxy, int]) -> Storage:
    """An empty bucket, and empty tables."""
    storage = Storage(empty, *server)
    storage.post("/moto-api/reset")
    storage.post("/bucket", method="PUT")
    return storage


Run = Callable[..., Process]


@pytest.fixture
def start(empty: Stack, storage: Storage, tmp_path: Path) -> Run:
    """Start export.py for deals of btc, into the bucket unless its arguments say otherwise."""

    def start(*arguments: object, **env: object) -> Process:
        out = [] if "--out" in arguments else ["--out", "s3://bucket/archive"]
        given: dict[str, Any] = {"TMPDIR": tmp_path} | storage.env | env
        return empty.start("export.py", "btc", "--type", "deals", *out, *arguments, **given)

    return start


def fill(stack: Stack, count: int, days: int = 1) -> None:
    """Add deals, spread evenly over some days."""
    ts = f"fromUnixTimestamp64Milli(toInt64({START_MS} + number * {days * DAY_MS / count}))"
    stack.query(f"INSERT INTO mexc_data.btc SELECT {ts}, 'd', {DEAL} FROM numbers({count}) ORDER BY number")


def done(process: Process, code: int = 0) -> str:
    """Wait for the end of an export; return its last line."""
    assert process.wait() == code, process.output
    return process.lines[-1]


def name(day: int) -> str:
    return f"archive/type=deals/symbol=BTC_USDT/date=2026-10-{day:02}/part-0.parquet"


def record(day: int) -> str:
    return f"archive/.export/type=deals/symbol=BTC_USDT/date=2026-10-{day:02}.parquet.json"


def left(tmp_path: Path) -> list[str]:
    """Return what an export has left in the folder for temporary files."""
    return [path.name for path in (tmp_path / f"mexc-export-{os.getuid()}").rglob("*") if path.is_file()]


def test_the_bucket_has_the_files_that_a_folder_has(empty: Stack, storage: Storage, start: Run, tmp_path: Path) -> None:
    fill(empty, 3_000, days=3)
    for more in ([], ["--format", "csv", "--compress", "gzip"]):
        place = f"{len(more)}"
        in_folder, in_bucket = start("--out", tmp_path / place, *more), start("--out", f"s3://bucket/{place}", *more)
        assert done(in_bucket).startswith(f"3 files written to s3://bucket/{place}, 3,000 rows")
        assert done(in_folder).startswith("3 files written to ")
        folder = {
            str(path.relative_to(tmp_path)): path.read_bytes()
            for path in (tmp_path / place).rglob("*")
            if path.is_file() and path.name != "lock"
        }
        assert len(folder) == 6
        assert {path: it for path, it in storage.tree().items() if path.startswith(f"{place}/")} == folder
    assert left(tmp_path) == ["lock", "lock"]


def test_tools_read_it_where_it_is(empty: Stack, storage: Storage, start: Run) -> None:
    fill(empty, 3_000, days=3)
    done(start())
    pattern = "archive/type=deals/**/*.parquet"
    options = {name.lower(): value for name, value in storage.env.items()} | {"aws_allow_http": "true"}
    assert len(polars.read_parquet(f"s3://bucket/{pattern}", storage_options=options)) == 3_000
    url = f"{storage.env['AWS_ENDPOINT_URL']}/bucket/{pattern}"
    query = f"SELECT count(), sum(contracts) FROM s3('{url}', 'key', 'secret', 'Parquet')"
    of_the_table = "SELECT count(), sum(toFloat64(splitByChar('|', m)[2])) FROM mexc_data.btc"
    assert empty.query(query) == empty.query(of_the_table)


def test_only_days_that_have_grown_are_written_again(empty: Stack, storage: Storage, start: Run) -> None:
    fill(empty, 3_000, days=3)
    done(start())
    before = storage.tree()
    assert "0 files written to s3://bucket/archive" in done(start())
    assert storage.tree() == before
    fill(empty, 500)
    assert done(start()).startswith("1 file written to s3://bucket/archive, 1,500 rows")
    after = storage.tree()
    assert {path for path in after if after[path] != before[path]} == {name(1), record(1)}


def test_a_connection_that_is_cut_once_does_no_harm(empty: Stack, storage: Storage, start: Run) -> None:
    fill(empty, MANY)
    storage.proxy.cut_after("to server", PASSED)
    cuts = storage.proxy.cuts
    assert done(start()).startswith(f"1 file written to s3://bucket/archive, {MANY:,} rows")
    assert storage.proxy.cuts == cuts + 1
    assert len(storage.tree()[name(1)]) > 2 * PASSED


def test_connections_that_are_cut_leave_the_old_file_and_what_is_known_of_it(
    empty: Stack, storage: Storage, start: Run
) -> None:
    fill(empty, 1_000)
    done(start())
    before = storage.tree()
    fill(empty, MANY)
    with storage.cutting():
        line = done(start(), 1)
    assert line.startswith(f"s3://bucket/{name(1)} cannot be written: ")
    assert line.endswith("; try again; for others than AWS, AWS_ENDPOINT_URL is where they are")
    assert storage.tree() == before
    empty.query("TRUNCATE TABLE mexc_data.btc")
    fill(empty, 900)
    assert "1 file kept, see above" in done(start(), 1)
    assert storage.tree() == before
    fill(empty, MANY)
    assert done(start()).startswith(f"1 file written to s3://bucket/archive, {MANY + 900:,} rows")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_an_export_that_is_ended_amid_an_upload_leaves_no_file(
    empty: Stack, storage: Storage, start: Run, tmp_path: Path, number: int
) -> None:
    fill(empty, MANY)
    cuts = storage.proxy.cuts
    with storage.cutting():
        process = start()
        eventually(lambda: storage.proxy.cuts > cuts, "an upload is cut")
        assert process.stop(number) != 0
    assert storage.tree().keys() & {name(1), record(1)} == set()
    assert done(start()).startswith(f"1 file written to s3://bucket/archive, {MANY:,} rows")
    assert storage.tree().keys() == {name(1), record(1)}
    assert left(tmp_path) == ["lock"]


def test_wrong_keys_are_one_line(empty: Stack, storage: Storage, start: Run) -> None:
    fill(empty, 100)
    with storage.checking():
        process = start(AWS_ACCESS_KEY_ID="wrong")
        line = done(process, 1)
    assert len(process.lines) == 1
    assert line.startswith("s3://bucket/archive/.export/type=deals/symbol=BTC_USDT cannot be written: ")
    assert line.endswith("; check AWS_ACCESS_KEY_ID")
    assert storage.tree() == {}


@pytest.mark.parametrize("refuses", ["a key that only reads", "a bucket's policy", "a key that deletes nothing"])
def test_who_may_not_write_is_told_so_and_all_stays_as_it_is(
    empty: Stack, storage: Storage, start: Run, tmp_path: Path, refuses: str
) -> None:
    fill(empty, 1_000)
    done(start())
    before = storage.tree()
    fill(empty, 1_000)
    actions = {"a key that only reads": ["s3:Get*", "s3:List*"], "a bucket's policy": ["s3:*"]}
    keys = storage.keys_of(policy("Allow", *actions.get(refuses, ["s3:Get*", "s3:List*", "s3:Put*"])))
    if refuses == "a bucket's policy":
        denied = policy("Deny", "s3:PutObject", Principal="*")
        storage.client("s3").put_bucket_policy(Bucket="bucket", Policy=denied)
    with storage.checking():
        process = start(**keys)
        line = done(process, 1)
    assert len(process.lines) == 1
    assert line.startswith(f"s3://bucket/{name(1)} cannot be written: ")
    assert line.endswith("; check the keys and what they may do: read, list, write and delete")
    assert {path: it for path, it in storage.tree().items() if not path.endswith(".tmp")} == before
    assert left(tmp_path) == ["lock"]


@pytest.mark.parametrize(
    ("out", "status", "body", "told"),
    [
        (
            "s3://bucket/archive?endpoint_override={}&scheme=http&region=us-east-1",
            507,
            "<Error><Code>XMinioStorageFull</Code><Message>Storage backend has reached its minimum free drive threshold"
            "</Message></Error>",
            " XMinioStorageFull Message: Storage backend has reached its minimum free drive threshold",
        ),
        (
            "gs://anonymous@bucket/archive?endpoint_override={}&scheme=http",
            403,
            '{"error": {"code": 403, "message": "No access"}}',
            ': the answer of Google is PERMISSION_DENIED: {"error": {"code": 403, "message": "No access"}};'
            " check the keys and what they may do: read, list, write and delete",
        ),
    ],
    ids=["full", "not allowed"],
)
def test_storage_that_takes_nothing_is_one_line(
    empty: Stack, start: Run, tmp_path: Path, out: str, status: int, body: str, told: str
) -> None:
    """As MinIO says that its disks are full, and Google that somebody may not."""
    fill(empty, 100)
    with serving(lambda path: (status, {}, body.encode()) if "upload" in path else (404, {}, b"")) as web:
        process = start("--out", out.format(web.url.removeprefix("http://")))
        line = done(process, 1)
    assert len(process.lines) == 1
    assert " cannot be written: " in line
    assert line.endswith(told)
    assert left(tmp_path) == ["lock"]


def test_google_has_the_files_that_a_folder_has(empty: Stack, start: Run, tmp_path: Path) -> None:
    port = free_port()
    options = ["--host", "127.0.0.1", "--port", port, "--in-memory", "--default-bucket", "bucket"]
    google = empty.start("-m", "gcp_storage_emulator", "-d", tmp_path / "google", "start", *options)
    google.wait_for("All services started")
    at = f"endpoint_override=127.0.0.1:{port}&scheme=http"
    files, _ = fs.FileSystem.from_uri(f"gs://anonymous@bucket/?{at}")
    out = ["--out", f"gs://anonymous@bucket/archive?{at}"]
    fill(empty, 3_000, days=3)
    assert done(start(*out)).startswith("3 files written to gs://bucket/archive, 3,000 rows")
    before = tree(files)
    fill(empty, 500)
    assert done(start(*out)).startswith("1 file written to gs://bucket/archive, 1,500 rows")
    after = tree(files)
    assert {path for path in after if after[path] != before[path]} == {name(1), record(1)}
    done(start("--out", tmp_path / "archive"))
    assert {path: it for path, it in after.items() if ".export" not in path} == {
        str(path.relative_to(tmp_path)): path.read_bytes() for path in (tmp_path / "archive").rglob("*.parquet")
    }
    line = done(start("--out", f"gs://anonymous@nobodys/archive?{at}"), 1)
    assert line.endswith("; make the bucket first")
    google.stop()
    line = done(start("--out", f"gs://anonymous@bucket/archive?{at}&retry_limit_seconds=1"), 1)
    assert line.endswith("; try again, and check GOOGLE_APPLICATION_CREDENTIALS, the file of the keys")


def test_keys_of_google_that_are_none_are_one_line(empty: Stack, start: Run, tmp_path: Path) -> None:
    fill(empty, 100)
    process = start("--out", "gs://bucket/archive", GOOGLE_APPLICATION_CREDENTIALS=tmp_path / "none")
    assert done(process, 1).endswith("; check GOOGLE_APPLICATION_CREDENTIALS")
    assert len(process.lines) == 1


def test_a_bucket_that_is_not_there_is_one_line(empty: Stack, start: Run) -> None:
    fill(empty, 100)
    process = start("--out", "s3://nobodys/archive")
    assert done(process, 1).endswith("; make the bucket first")
    assert len(process.lines) == 1


@pytest.mark.parametrize(
    ("out", "why"),
    [
        (
            "ftp://host/archive",
            "ftp:// is no place to export to: give a folder, s3://bucket/prefix, gs://bucket/prefix",
        ),
        ("abfss://container/archive", "account"),
        ("s3://", "names no bucket"),
        ("s3://bucket/archive?no=such", "no"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(start: Run, out: str, why: str) -> None:
    line = done(start("--out", out), 2)
    assert "export.py: error: --out " in line
    assert why in line


def test_a_folder_may_have_an_address(empty: Stack, start: Run, tmp_path: Path) -> None:
    fill(empty, 100)
    out = tmp_path / "an archive"
    assert done(start("--out", out.as_uri())).startswith(f"1 file written to {out}, 100 rows")


def test_two_exports_into_one_tree_at_once_are_not_to_be(empty: Stack, storage: Storage, start: Run) -> None:
    fill(empty, MANY)
    cuts = storage.proxy.cuts
    with storage.cutting():
        first = start()
        eventually(lambda: storage.proxy.cuts > cuts, "an upload is cut")
        line = done(start(), 1)
    assert "is in use: another export is writing into it" in line
    first.wait()
