"""Whom connections to MEXC trust: those whom this machine trusts, read once.

That takes 2 MB, and collect.py does it before it forks, so that all its collectors have the same.
"""

from __future__ import annotations

import ssl
from functools import cache


@cache
def tls() -> ssl.SSLContext:
    """Return what a connection needs to be within TLS, to the host that it is meant for."""
    return ssl.create_default_context()


def explain_tls(error: ssl.SSLError) -> str:
    """Return a few words on a connection that failed; for the next one, whom to trust is read anew."""
    tls.cache_clear()
    return f"TLS: {error.reason or error}"
