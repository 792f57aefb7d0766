#!/usr/bin/env python3
"""Prepare ClickHouse: drop its own log tables, create the database and one StripeLog table a symbol.

With HISTORY=1 a history of each as well, where a range of time costs what is in it.

Run again it changes nothing; tables that exist stay as they are, with all that is in them. A compaction that was cut
short is finished. Four options do something else: --compact rewrites tables into big blocks while collectors run,
--drop-before deletes rows from before a moment, --history copies into the histories what they lack of their tables, and
--repair saves what a power loss has left of the tables, in the files of a ClickHouse that is stopped.

Exit codes: 0 done, 1 ClickHouse did not come up or refused something, a table was not compacted, a history not filled,
or damage is left, 2 a setting, a table's name or a directory cannot be used, or SYMBOLS names what is no contract.
Histories that could not be made are said, and no more, for collectors run without them.
"""

from __future__ import annotations

from pipeline import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from clickhouse_driver import Client
from clickhouse_driver.errors import ErrorCodes, ServerException

from config import ConfigError, Settings, SymbolConfig, all_symbols, check_identifier, load_settings, more_symbols
from pipeline.contracts import ask_contracts, no_contract
from pipeline.rest import Rest, RestError
from pipeline.store import history
from pipeline.store.client import CLICKHOUSE_ERRORS, connect, explain, is_misconfigured
from pipeline.store.compact import BeingCompacted, CompactionError, Progress, compact, resume, tables_of
from pipeline.store.copying import copy
from pipeline.store.dropping import drop, refuse_beside_a_history, survey
from pipeline.store.schema import (
    ENGINE,
    create_claims,
    create_database,
    create_table,
    drop_system_logs,
    drop_table,
    existing_tables,
    table_with_uuid,
)
from pipeline.times import iso, parse_time, to_ms, with_times_joined


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description="Create the ClickHouse tables of all symbols in config.py.")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--reset", action="store_true", help="delete the tables with all their data, create them anew")
    instead.add_argument(
        "--compact",
        nargs="?",
        const="",
        metavar="TABLE",
        help="rewrite a table, or all of them one after the other, into big blocks; collectors may run",
    )
    instead.add_argument(
        "--drop-before",
        type=_time,
        metavar="DATE",
        help="delete the rows from before this UTC date or ISO time, yesterday or -90d, of all tables or those named,"
        " after asking; collectors may run",
    )
    instead.add_argument(
        "--history",
        action="store_true",
        help="copy into the histories what they lack of their tables; collectors may run",
    )
    instead.add_argument(
        "--repair",
        nargs="?",
        const="",
        metavar="DIR",
        help="save what a power loss has left of the tables in ClickHouse's data directory, with ClickHouse stopped"
        " (default: the local stack's)",
    )
    parser.add_argument(
        "--yes",
        action="store_true",
        help="do not ask before rows are deleted or --repair cuts; with --history: they keep rows that only they have",
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="with --drop-before: of these only")
    parser.add_argument("--wait", type=float, default=60, metavar="SECONDS", help="for the server (default: 60)")
    options = parser.parse_args(with_times_joined(sys.argv[1:]))
    if options.tables and not options.drop_before:
        parser.error(f"unrecognized arguments: {' '.join(options.tables)}")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    settings = None
    try:
        if options.repair is not None:
            return repair(options.repair, always=options.yes)
        settings = load_settings()
        check_settings(settings)
        client = connect(settings)
        wait_for_server(client, settings, options.wait)
        if options.reset and not (options.yes or confirmed(reset_warning(settings))):
            print("Nothing was deleted.")
            return 1
        if options.compact is not None:
            return compact_tables(settings, options.compact)
        if options.drop_before:
            return drop_before(settings, options.drop_before, options.tables, always=options.yes)
        if options.history:
            return copy_into_histories(settings, keep_others=options.yes)
        return set_up(client, settings, reset=options.reset)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except CompactionError as error:
        print(error, file=sys.stderr)
        return 1
    except CLICKHOUSE_ERRORS as error:
        assert settings is not None
        print(explain(error, settings), file=sys.stderr)
        return 2 if is_misconfigured(error) else 1


def _time(text: str) -> datetime:
    try:
        return parse_time(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def check_settings(settings: Settings) -> None:
    """Raise ConfigError where tables cannot be set up like that."""
    for config in all_symbols(settings):
        check_identifier("table_name", config["table_name"])
    if settings.history and settings.history_keep_days and not settings.compact_blocks:
        raise ConfigError(
            "HISTORY_KEEP_DAYS would drop rows that COMPACT_BLOCKS=0 keeps elsewhere: set one of them otherwise"
        )


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


def repair(directory: str, *, always: bool) -> int:
    """Repair the tables below `directory`, or the local stack's, asking first unless `always`; return the exit code."""
    try:
        from pipeline.store.repair import (  # packages for nothing else
            RepairError,
            default_directories,
            repair_directory,
        )
    except ModuleNotFoundError as error:
        print(f"--repair needs {error.name}: run ./setup.sh", file=sys.stderr)
        return 2
    try:
        directories = [Path(directory)] if directory else default_directories()
        return max(repair_directory(each, lambda warning: always or confirmed(warning)) for each in directories)
    except RepairError as error:
        print(error, file=sys.stderr)
        return 2


def chosen_tables(settings: Settings, only: Sequence[str]) -> Sequence[str]:
    """Return the names in `only`, or of all tables where it is empty. Raises ConfigError for one that is not there."""
    names = [config["table_name"] for config in all_symbols(settings)]
    for name in only:
        if name not in names:
            raise ConfigError(f"There is no table {name} in config.py or SYMBOLS")
    return only or names


def compact_tables(settings: Settings, only: str) -> int:
    """Compact all tables, or the one named `only`, and print what is done; return the exit code."""
    exit_code = 0
    for name in chosen_tables(settings, [only] if only else []):
        try:
            show(compact(settings, name))
        except CompactionError as error:
            print(error, file=sys.stderr)
            exit_code = 1
    return exit_code


def drop_before(settings: Settings, moment: datetime, only: Sequence[str], *, always: bool) -> int:
    """Drop the rows from before `moment` of all tables, or those named, after asking unless `always`.

    Prints what goes, and what is done; returns the exit code.
    """
    names = chosen_tables(settings, only)
    before_ms = to_ms(moment)
    if moment > datetime.now(UTC):
        raise ConfigError(f"--drop-before {iso(before_ms)} is yet to come: all rows would go, which --reset does")
    if settings.history and not settings.compact_blocks:
        raise ConfigError("COMPACT_BLOCKS=0 keeps all rows beside a history: set it otherwise to use --drop-before")
    exit_code, old = 0, {}
    for name in names:
        try:
            refuse_beside_a_history(settings, name)
            old[name] = survey(settings, name, before_ms)
        except CompactionError as error:
            print(error, file=sys.stderr)
            exit_code = 1
    going = [str(each) for found in old.values() for each in found]
    if not going:
        print(f"No row is from before {iso(before_ms)}")
        return exit_code
    warning = "\n".join([*going, f"This deletes all rows from before {iso(before_ms)} of these tables, for good."])
    if always:
        print(warning, flush=True)
    elif not confirmed(warning):
        print("Nothing was deleted.")
        return 1
    for name in [name for name, found in old.items() if found]:
        try:
            show(drop(settings, name, before_ms))
        except CompactionError as error:
            print(error, file=sys.stderr)
            exit_code = 1
    return exit_code


def copy_into_histories(settings: Settings, *, keep_others: bool) -> int:
    """Copy what the histories of all tables lack, and print what is done; return the exit code.

    Rows that only a history has are trouble, unless it is to keep them.
    """
    exit_code = 0
    try:
        with history.connect_history(settings) as there:
            there.execute("SELECT 1")
    except CLICKHOUSE_ERRORS as error:
        print(history.explain_history(error, settings), file=sys.stderr)
        return 2 if is_misconfigured(error) else 1
    for config in all_symbols(settings):
        try:
            show(copy(settings, config["table_name"], keep_others=keep_others))
        except CompactionError as error:
            print(error, file=sys.stderr)
            exit_code = 1
    return exit_code


def show(steps: Iterable[Progress]) -> None:
    """Print each step as a line, and on a terminal the present one as a bar."""
    text = ""
    for step in steps:
        if sys.stdout.isatty() and 0 < step.done < 1:
            print(f"\r\033[K[{'#' * round(30 * step.done):<30}] {step.done:4.0%} {step.text}", end="", flush=True)
        elif step.text != text:
            print("\r\033[K" * sys.stdout.isatty() + step.text, flush=True)
        text = step.text


def reset_warning(settings: Settings) -> str:
    """Return what is deleted by --reset."""
    names = [config["table_name"] for config in all_symbols(settings)]
    if settings.history:
        names += [history.history_of(name) for name in names]
    return f"This deletes ALL DATA in the tables {', '.join(names)} of {settings.clickhouse_database}."


def confirmed(warning: str) -> bool:
    """Ask whether to go on in spite of `warning`."""
    print(warning)
    try:
        return input("Type yes to go on: ").strip().lower() == "yes"
    except EOFError:
        print()
        return False


def set_up(client: Client, settings: Settings, *, reset: bool) -> int:
    """Do it all, and print what is done; return the exit code."""
    database = settings.clickhouse_database
    print("Dropping system log tables to prevent storage bloat...")
    for name in drop_system_logs(client):
        print(f"  Dropped {name}")
    create_database(client, database)
    create_claims(client, database)
    unknown = unknown_symbols(client, settings)
    configs = [config for config in all_symbols(settings) if config["symbol"] not in unknown]
    for config in configs:
        if reset:
            delete(client, database, config)
        try:
            show(resume(settings, config["table_name"]))
            while not provide(client, database, config):
                show(resume(settings, config["table_name"]))
        except BeingCompacted as error:
            print(f"Leaving {config['table_name']} table alone: {error}")
        except SetupError as error:
            print(error)
            return 1
    unready = provide_histories(settings, [config["table_name"] for config in configs], reset=reset)
    print("\nSetup Summary:")
    for config in configs:
        name = config["table_name"]
        print(f"  {name.upper()} data: {name} table → {name}/data.bin (continuous growth)")
        if settings.history and name not in unready:
            print(
                f"  {name.upper()} history: {history.history_of(name)} table, views {', '.join(history.views_of(name))}"
            )
    if unready:
        print(
            f"WARNING: not ready: {', '.join(map(history.history_of, unready))}; collectors run all the same, and these"
            " rows wait in their journals: mend that, then run ch_setup.py again",
            file=sys.stderr,
        )
    for line in unknown.values():
        print(f"SYMBOLS: {line}", file=sys.stderr)
    if unknown:
        return 2
    return 1 if unready and reset else 0  # else collectors, which compose starts after that, wait for a history


def unknown_symbols(client: Client, settings: Settings) -> dict[str, str]:
    """Return the symbols of SYMBOLS that have no table and are no contract of MEXC's, each with a line that says it.

    There is none where MEXC cannot be asked: collectors ask again. One with a table may be off the market by now.
    """
    tables = existing_tables(client, settings.clickhouse_database)
    new = [config["symbol"] for config in more_symbols(settings) if config["table_name"] not in tables]
    if not new:
        return {}
    try:
        contracts = ask_contracts(Rest(settings))
    except RestError:
        return {}
    return {symbol: no_contract(symbol, contracts) for symbol in new if symbol not in contracts}


def provide_histories(settings: Settings, names: Sequence[str], *, reset: bool) -> list[str]:
    """Make what belongs to the histories of these tables, if the settings have any, each by itself.

    Prints what is done, and what could not be; returns the names of the tables whose history cannot be used.
    """
    unready: list[str] = []
    if not settings.history:
        return unready
    with history.connect_history(settings) as client:
        for at, name in enumerate(names):
            try:
                provide_history(client, settings, name, reset=reset)
            except SetupError as error:
                print(error, file=sys.stderr)
                unready.append(name)
            except CLICKHOUSE_ERRORS as error:
                print(history.explain_history(error, settings), file=sys.stderr)
                if is_misconfigured(error) or not isinstance(error, ServerException):
                    return [*unready, *names[at:]]  # the others would fare no better
                unready.append(name)
    return unready


def provide_history(client: Client, settings: Settings, name: str, *, reset: bool) -> None:
    """Make what belongs to the history of the table `name`, unless it is there, and see that it can be used.

    Raises SetupError, and one of CLICKHOUSE_ERRORS.
    """
    database = settings.clickhouse_database
    create_database(client, database)
    if reset and history.is_there(client, database, name):
        print(f"Deleting {history.history_of(name)} table...")
        history.drop(client, database, name)
    is_new = not history.is_there(client, database, name)
    print(
        f"Creating {history.history_of(name)} table..."
        if is_new
        else f"Keeping {history.history_of(name)} table, it exists"
    )
    if not is_new and (wrong := history.what_is_wrong(client, database, name)):
        raise SetupError(wrong)
    history.provide(client, settings, name)


class SetupError(Exception):
    """A table cannot be provided; the text is one line that says why."""


def delete(client: Client, database: str, config: SymbolConfig) -> None:
    """Delete a table with what a compaction has made of it, whatever names that gives them meanwhile."""
    is_said = False
    while found := tables_of(client, database, config["table_name"]):
        if not is_said:
            print(f"Deleting {config['table_name']} table...")
        is_said = True
        for each in found:
            drop_table(client, database, {**config, "table_name": each})


def provide(client: Client, database: str, config: SymbolConfig) -> bool:
    """Create a table unless it exists. Returns False where somebody else does or compacts it just now: look again.

    Raises SetupError.
    """
    name = config["table_name"]
    engine = existing_tables(client, database).get(name)
    if engine == ENGINE:
        print(f"Keeping append-only {name} table, it exists")
        return True
    if engine:
        raise SetupError(f"{database}.{name} exists with engine {engine}, not {ENGINE}: rename or drop it first")
    if holder := table_with_uuid(client, config["uuid"]):
        if holder in [f"{database}.{each}" for each in tables_of(client, database, name)]:
            return False
        raise SetupError(f"{database}.{name} cannot be created, its UUID is that of {holder}: a server holds it once")
    print(f"Creating append-only {name} table ({name}/data.bin equivalent)...")
    try:
        create_table(client, database, config)
    except ServerException as error:
        if error.code != ErrorCodes.TABLE_ALREADY_EXISTS:
            raise
        if not tables_of(client, database, name) and not table_with_uuid(client, config["uuid"]):
            raise SetupError(
                f"{database}.{name} cannot be created, for its directory is there already, store/{config['uuid'][:3]}/"
                f"{config['uuid']}: a power loss has left it. Stop ClickHouse and run ch_setup.py --repair"
            ) from None
        return False
    return True


if __name__ == "__main__":
    sys.exit(interrupts.run(main))
