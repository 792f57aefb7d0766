"""The embedded engine as the server in the container: with two users, and with a port that all may reach by socat.

The engine has one user, `default`. With ONLY_COLLECTOR set, that one has the rights that docker/clickhouse-users.xml
gives the collectors, which the engine itself holds it to, and nobody but they may log in. USERS names another such
file, NAME the user in it.
"""

from __future__ import annotations

import os
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

import chdb

from local import clickhouse

USERS = os.environ.get("USERS", "/etc/clickhouse-server/users.d/collector.xml")  # where docker-compose.yml mounts it
NAME = os.environ.get("NAME", "collector")
CONFIG = "<clickhouse><user_directories><users_xml><path>{}</path></users_xml></user_directories></clickhouse>"


def restrict(users: str, directory: Path) -> None:
    """Let the engine know `default` by the rights of NAME, with no password: the server asks for that."""
    tree = ET.parse(users)
    (user,) = tree.findall(f"./users/{NAME}")
    user.tag = "default"
    for password in [each for each in user if each.tag.startswith("password")]:
        user.remove(password)
    ET.SubElement(user, "password")
    for grants in user.findall("grants"):  # `local` says USE default; a server does not have to be told
        ET.SubElement(grants, "query").text = "GRANT SHOW DATABASES ON default.*"
    for section in ("profiles", "quotas"):
        found = tree.find(section)
        ET.SubElement(ET.SubElement(tree.getroot(), section) if found is None else found, "default")
    tree.write(directory / "users.xml")
    (directory / "config.xml").write_text(CONFIG.format(directory / "users.xml"))
    connect = chdb.connect
    chdb.connect = lambda path: connect(f"{path}?config-file={directory / 'config.xml'}")


class Credentials:
    """Of each user that may log in; equal to that of any of them."""

    def __init__(self, *pairs: tuple[str, str]) -> None:
        self._pairs = pairs

    def __eq__(self, other: object) -> bool:
        return other in self._pairs

    __hash__ = None  # type: ignore[assignment]


def main() -> int:
    collector = (NAME, os.environ["CLICKHOUSE_COLLECTOR_PASSWORD"])
    pairs = [collector, ("default", os.environ["CLICKHOUSE_PASSWORD"])]
    if os.environ.get("ONLY_COLLECTOR"):
        restrict(USERS, Path(tempfile.mkdtemp()))
        pairs = [collector]

    class Server(clickhouse.Server):
        def __init__(self, engine: clickhouse.Engine, *_: str) -> None:
            super().__init__(engine, *pairs[0])
            self.credentials = Credentials(*pairs)  # type: ignore[assignment]

    clickhouse.Server = Server  # type: ignore[misc, assignment]
    return clickhouse.main()


if __name__ == "__main__":
    sys.exit(main())
