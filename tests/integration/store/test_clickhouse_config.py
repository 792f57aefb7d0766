"""clickhouse-config-simple.xml, read and merged by a real engine as the server in the container does it.

The embedded engine is a newer version than the container's, takes no user names and no limits on queries, and lets
`file` read everything; that user_files_path opens the data directory can be proven with a server only.
"""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path

import pytest

from config import PROJECT

CONFIG = PROJECT / "clickhouse-config-simple.xml"
LOGS_OF_24_3 = """\
    query_log query_thread_log query_views_log part_log trace_log crash_log text_log metric_log asynchronous_metric_log
    filesystem_cache_log filesystem_read_prefetches_log opentelemetry_span_log zookeeper_log session_log
    transactions_info_log processors_profile_log asynchronous_insert_log backup_log s3queue_log blob_storage_log"""

ASK = """
import sys, chdb
connection = chdb.connect(f"{sys.argv[1]}?config-file={sys.argv[2]}")
print(connection.query("SELECT name, value FROM system.server_settings WHERE changed", "TSV"))
"""


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


class Server:
    """An engine with a config.xml, and files in its config.d, which it reads in the order of their names."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def start(self, config: str, **extra: str) -> tuple[dict[str, str], str]:
        """Start it with this content of config.xml and these files; return the settings that are no defaults, and all
        that it said."""
        main = self._directory / "config.xml"
        main.write_text(f"<clickhouse>{config}</clickhouse>")
        (self._directory / "config.d").mkdir(exist_ok=True)
        for name, content in extra.items():
            (self._directory / "config.d" / f"{name}.xml").write_text(content)
        command = [sys.executable, "-c", ASK, str(self._directory / "data"), str(main)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        settings = dict(line.split("\t", 1) for line in result.stdout.splitlines() if line.count("\t") == 1)
        return settings, result.stdout + result.stderr


def test_the_engine_takes_every_setting(server: Server) -> None:
    theirs = "<mark_cache_size>1</mark_cache_size><user_files_path>/x/</user_files_path>"
    settings, _ = server.start(theirs, custom=CONFIG.read_text())
    assert settings["user_files_path"] == "/var/lib/clickhouse/"
    assert settings["max_server_memory_usage_to_ram_ratio"] == "0.75"
    assert settings["mark_cache_size"] == "67108864"
    assert settings["asynchronous_metrics_update_period_s"] == "30"
    assert "max_concurrent_queries" in settings  # this engine shows another value for it
    assert settings["logger.console"] == "0"
    assert settings["logger.size"] == "10M"
    assert settings["logger.count"] == "2"
    # The file has nothing else, and so nothing that the engine does not know.
    named = {element.tag for element in ET.parse(CONFIG).getroot() if not element.get("remove")} - {"logger"}
    assert len(named) == 5
    assert named <= settings.keys()


def test_no_log_of_the_engine_is_left(server: Server) -> None:
    def sections(names: Iterable[str]) -> str:
        return "".join(f"<{name}><database>system</database><table>{name}</table></{name}>" for name in names)

    talk = "<clickhouse><logger><level>debug</level><console>1</console></logger></clickhouse>"
    _, said = server.start(sections(["query_log"]), zz_talk=talk)  # with one of them on, it tells which ones are off
    known = {"query_log", *re.findall(r"Not creating system\.(\w+) since", said)}
    assert len(known) >= 20
    _, said = server.start(sections(known))
    assert set(re.findall(r"Creating system\.(\w+) from", said)) == known
    _, said = server.start(sections(known), custom=CONFIG.read_text())
    assert "SystemLog" not in said
    assert re.findall(r"Creating system\.(\w+) from", said) == []


def test_no_log_of_the_containers_version_is_left() -> None:
    removed = {element.tag for element in ET.parse(CONFIG).getroot() if element.get("remove") == "1"}
    assert removed >= set(LOGS_OF_24_3.split())
