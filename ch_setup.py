#!/usr/bin/env python3
"""Prepare ClickHouse: drop its own log tables, create the database and one StripeLog table a symbol.

Run again it changes nothing; tables that exist stay as they are, with all that is in them.

Exit codes: 0 done, 1 ClickHouse did not come up or refused something, 2 a setting cannot be used.
"""

from __future__ import annotations

import argparse
import sys
import time

from clickhouse_driver import Client

from config import ALL_CONFIGS, ConfigError, Settings, check_identifier, load_settings
from pipeline.client import CLICKHOUSE_ERRORS, connect, explain, is_misconfigured
from pipeline.schema import (
    ENGINE,
    create_database,
    create_table,
    drop_system_logs,
    drop_table,
    existing_tables,
)


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description="Create the ClickHouse tables of all symbols in config.py.")
    parser.add_argument("--reset", action="store_true", help="delete the tables with all their data, create them anew")
    parser.add_argument("--yes", action="store_true", help="do not ask before --reset deletes")
    parser.add_argument("--wait", type=float, default=60, metavar="SECONDS", help="for the server (default: 60)")
    options = parser.parse_args()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    settings = None
    try:
        settings = load_settings()
        for config in ALL_CONFIGS:
            check_identifier("table_name", config["table_name"])
        client = connect(settings)
        wait_for_server(client, settings, options.wait)
        if options.reset and not (options.yes or confirmed(settings)):
            print("Nothing was deleted.")
            return 1
        return set_up(client, settings.clickhouse_database, reset=options.reset)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except CLICKHOUSE_ERRORS as error:
        assert settings is not None
        print(explain(error, settings), file=sys.stderr)
        return 2 if is_misconfigured(error) else 1
    except KeyboardInterrupt:
        return 130


def wait_for_server(client: Client, settings: Settings, seconds: float) -> None:
    """Return once ClickHouse answers; raise what keeps it from that after `seconds`, or at once if waiting is vain."""
    deadline = time.monotonic() + seconds
    waiting = False
    while True:
        try:
            client.execute("SELECT 1")
        except CLICKHOUSE_ERRORS as error:
            if is_misconfigured(error) or time.monotonic() >= deadline:
                raise
            if not waiting:
                print(f"{explain(error, settings)}; waiting up to {seconds:.0f} s for it", flush=True)
            waiting = True
            time.sleep(0.5)
        else:
            return


def confirmed(settings: Settings) -> bool:
    """Ask whether the data may be deleted."""
    names = ", ".join(config["table_name"] for config in ALL_CONFIGS)
    print(f"This deletes ALL DATA in the tables {names} of {settings.clickhouse_database}.")
    try:
        return input("Type yes to go on: ").strip().lower() == "yes"
    except EOFError:
        print()
        return False


def set_up(client: Client, database: str, *, reset: bool) -> int:
    """Do it all, and print what is done; return the exit code."""
    print("Dropping system log tables to prevent storage bloat...")
    for name in drop_system_logs(client):
        print(f"  Dropped {name}")
    create_database(client, database)
    engines = existing_tables(client, database)
    for config in ALL_CONFIGS:
        name = config["table_name"]
        if reset and name in engines:
            print(f"Deleting {name} table...")
            drop_table(client, database, config)
            del engines[name]
        if name not in engines:
            print(f"Creating append-only {name} table ({name}/data.bin equivalent)...")
            create_table(client, database, config)
        elif engines[name] == ENGINE:
            print(f"Keeping append-only {name} table, it exists")
        else:
            print(f"{database}.{name} exists with engine {engines[name]}, not {ENGINE}: rename or drop it first")
            return 1
    print("\nSetup Summary:")
    for config in ALL_CONFIGS:
        name = config["table_name"]
        print(f"  {name.upper()} data: {name} table → {name}/data.bin (continuous growth)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
