"""The one way to reach ClickHouse, and its failures in words that a user can act on."""

from __future__ import annotations

import logging
import re
import traceback
from typing import Any

from clickhouse_driver import Client
from clickhouse_driver.errors import (
    Error,
    ErrorCodes,
    NetworkError,
    ServerException,
    SocketTimeoutError,
    UnexpectedPacketFromServerError,
)

from config import Settings, origin

CLICKHOUSE_ERRORS = (Error, EOFError, OSError)
"""All that a call of clickhouse-driver can raise: a server that dies amid a query gives a bare EOFError or OSError."""

ALL_ROWS: dict[str, Any] = {
    **dict.fromkeys(
        (
            "max_rows_to_read",
            "max_bytes_to_read",
            "max_execution_time",
            "max_rows_to_read_leaf",  # the leaf ones count for local tables, too
            "max_bytes_to_read_leaf",
            "max_execution_time_leaf",
            "max_result_rows",
            "max_result_bytes",
            "limit",
            "offset",
            "use_query_cache",  # what was true a minute ago
        ),
        0,
    ),
    **dict.fromkeys(
        (
            "read_overflow_mode",
            "read_overflow_mode_leaf",
            "timeout_overflow_mode",
            "timeout_overflow_mode_leaf",
            "result_overflow_mode",
            "group_by_overflow_mode",
            "sort_overflow_mode",
            "distinct_overflow_mode",
            "set_overflow_mode",
            "join_overflow_mode",
            "transfer_overflow_mode",
        ),
        "throw",
    ),
    "additional_table_filters": "{}",
    "additional_result_filter": "",
    "filter": "",
}
"""Query settings for who relies on reading all rows: a user's profile may have any of these otherwise, and a read then
ends early, or leaves rows out, without an error. No setting helps against a row policy: compare with total_rows of
system.tables, which neither touches. Servers pass over those that they do not know."""

_MISSING = (ErrorCodes.UNKNOWN_TABLE, ErrorCodes.UNKNOWN_DATABASE)
_REFUSED = (192, 193, 194, 516)  # unknown user, wrong password, password required, authentication failed
_NO_SETTINGS = (164, 452)  # readonly, setting constraint violation
_ACCESS_DENIED = 497
_TLS_HINT = "; where it is within TLS, as on port 9440, {}_SECURE=1"

logging.getLogger("clickhouse_driver").setLevel(logging.CRITICAL)  # `explain` says it, in one line


class _Client(Client):  # type: ignore[misc]
    """Tries without a password where the one that is set is refused.

    That in `.env` is one for ClickHouse in Docker, made by setup.sh; a server of one's own may well have none.
    """

    def __init__(self, *args: Any, password: str, **options: Any) -> None:
        super().__init__(*args, password=password, **options)
        self._passwords = dict.fromkeys((password, ""))

    def establish_connection(self, settings: Any) -> None:
        refusal = None
        for password in self._passwords:
            self.connection.password = password
            try:
                super().establish_connection(settings)
            except ServerException as error:
                if error.code not in _REFUSED:
                    raise
                refusal = refusal or error
                self.disconnect()
            else:
                return
        assert refusal
        raise refusal


def connect(
    settings: Settings, *, timeout: float = 120, query_settings: dict[str, Any] | None = None, **options: Any
) -> Client:
    """Return a client for one thread; it connects at its first query.

    No database is selected, since it may not exist yet: queries name it. `timeout` (seconds) is how long a single
    answer may take; `query_settings` go with every query, `options` to clickhouse_driver.Client. Where the password is
    refused, none is tried.
    """
    return _Client(
        settings.clickhouse_host,
        settings.clickhouse_port,
        user=settings.clickhouse_user,
        password=settings.clickhouse_password,
        secure=bool(settings.clickhouse_secure),
        ca_certs=settings.clickhouse_ca or None,
        database="",
        connect_timeout=5,
        send_receive_timeout=timeout,
        sync_request_timeout=5,
        settings=query_settings,
        **options,
    )


def permitted(client: Client, settings: dict[str, Any]) -> dict[str, Any]:
    """Return those of query settings that the user may change: with ``readonly = 1`` in his profile, none.

    This is for settings that a query is only better with. One that it needs is sent as it is: a server that refuses to
    change it names it, and takes it where the profile has that value.
    """
    query = "SELECT name FROM system.settings WHERE readonly != 0 AND name IN %(names)s"
    fixed = {name for (name,) in client.execute(query, {"names": list(settings)})}
    return {name: value for name, value in settings.items() if name not in fixed}


def is_missing_table(error: BaseException) -> bool:
    """Whether `error` says that the table or its database does not exist."""
    return isinstance(error, ServerException) and error.code in _MISSING


def is_misconfigured(error: BaseException) -> bool:
    """Whether `error` will not go away by itself: a wrong user or password, a port where something else listens."""
    if isinstance(error, ServerException):
        return error.code in _REFUSED
    return isinstance(error, UnexpectedPacketFromServerError)


def explain(error: BaseException, settings: Settings, prefix: str = "CLICKHOUSE") -> str:
    """Return one line on `error`, one of CLICKHOUSE_ERRORS: what happened, and what to do where something can be.

    `prefix` is that of the settings by which the user knows the server.
    """
    tls_hint = _TLS_HINT.format(prefix)
    server = f"ClickHouse at {settings.clickhouse_host}:{settings.clickhouse_port}"
    if isinstance(error, ServerException):
        if error.code in _REFUSED:
            given = " and ".join(f"{name} ({origin(name)})" for name in (f"{prefix}_USER", f"{prefix}_PASSWORD"))
            return f"{server} refuses user {settings.clickhouse_user}: check {given}"
        if error.code == ErrorCodes.INCORRECT_QUERY and "is not Atomic" in error.message:
            advice = "make it anew with ENGINE = Atomic, or give another one in CLICKHOUSE_DATABASE"
        else:
            advice = ""
        text = re.sub(r"\s*(Stack trace:.*)?$", "", error.message, count=1, flags=re.DOTALL)
        text = " ".join(text.removeprefix("DB::Exception: ").split())
        refusal = f"{server} does not let user {settings.clickhouse_user} do that"
        if error.code in _NO_SETTINGS:
            if "'max_threads'" in text:  # what is read has to be in order
                advice = "rows come in the order they are stored in with max_threads = 1 only: have that in the user's"
                return f"{refusal}: {text.rstrip('.')}; {advice} profile, or read from a history (HISTORY=1)"
            allow = f"allow it in the user's profile, or set {prefix}_USER to another"
            return f"{refusal}: {text.rstrip('.')}; {allow}"
        if error.code == _ACCESS_DENIED and (
            missing := re.search(r"necessary to have (?:the )?grant (.+?)\.? \(", text)
        ):
            return f"{refusal}: GRANT {missing[1]} TO {settings.clickhouse_user}"
        return f"{server} reports error {error.code}: {text}{advice and ': '}{advice}"
    if isinstance(error, UnexpectedPacketFromServerError):
        port = f"check {prefix}_PORT (9000, unless it was changed)"
        return f"{server} does not speak the native protocol: {port}{tls_hint}"
    if isinstance(error, TimeoutError | SocketTimeoutError):
        return f"{server} did not answer in time"
    if isinstance(error, NetworkError | OSError):
        reason = error.message if isinstance(error, Error) else error.strerror or str(error)
        reason = re.sub(r"^\[[^]]*\] ", "", reason).split(" (")[0].lower()  # of TLS, the names of its parts go
        return f"{server} cannot be reached: {reason}{tls_hint if 'reset' in reason else ''}"
    at_once = "receive_hello" in (frame.name for frame in traceback.extract_tb(error.__traceback__))
    return f"{server} broke off the connection{f' at once{tls_hint}' if at_once else ''}"
