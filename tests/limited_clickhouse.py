"""local.clickhouse for a user whom the server limits: by a profile, by grants, by row policies.

    python3 -m tests.limited_clickhouse CONFIG.xml --port N --data DIR

A test starts it by `limited`, on the data of a ClickHouse that was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from local import clickhouse
from tests.stack import Process, Stack

_CONFIG = """
<clickhouse><user_directories><users_xml><path>{users}</path></users_xml></user_directories></clickhouse>
"""

_USERS = """
<clickhouse>
    <profiles><default>{profile}</default></profiles>
    <users>
        <default>
            <password></password>
            <networks><ip>::/0</ip></networks>
            <profile>default</profile>
            <quota>default</quota>
            {grants}
            <databases><mexc_data>{filters}</mexc_data></databases>
        </default>
    </users>
    <quotas><default></default></quotas>
</clickhouse>
"""


def limited(stack: Stack, profile: str = "", grants: str = "", hidden: Mapping[str, str] | None = None) -> Process:
    """Stop the stack's ClickHouse and start one for a limited user in its place.

    `profile` is the XML of a settings profile, `grants` what he may do: privileges on all tables, or a GRANT statement;
    all if it is empty. `hidden` has conditions on the rows that he may see, by the table of mexc_data.
    """
    stack.processes[0].stop()
    users, config = stack.directory / "users.xml", stack.directory / "config.xml"
    statement = grants if grants.startswith("GRANT ") else f"GRANT {grants} ON *.*"
    session = "GRANT SHOW DATABASES ON default.*"  # local.clickhouse begins one there
    given = f"<grants><query>{statement}</query><query>{session}</query></grants>" if grants else ""
    filters = "".join(f"<{name}><filter>{seen}</filter></{name}>" for name, seen in (hidden or {}).items())
    users.write_text(_USERS.format(profile=profile, grants=given, filters=filters))
    config.write_text(_CONFIG.format(users=users))
    server = stack.start("-m", "tests.limited_clickhouse", config, "--port", stack.port, "--data", stack.data)
    server.wait_for("listening on")
    return server


class _Engine(clickhouse.Engine):
    """The engine with a configuration file of its own."""

    config = ""

    def connect(self) -> Any:
        return self._connect(f"{self._data}?config-file={self.config}")


if __name__ == "__main__":
    _Engine.config = sys.argv.pop(1)
    clickhouse.Engine = _Engine  # type: ignore[misc]
    sys.exit(clickhouse.main())
