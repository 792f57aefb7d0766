"""The archive from any folder: ``from mexc_pipeline import candles, load``, after ``pip install -e`` of the project.

In: what `pipeline.read` takes. Out: what it gives, and what its examples use besides. Promise: the names `config` and
`pipeline` stay those of whoever imports this; most bots have a config.py of their own. The project's are looked up in
its folder while this is imported, all at once, and then forgotten; nothing of it imports more of it later.

Settings are those of the project's ``.env``, or of the file that MEXC_PIPELINE_ENV names.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

_PROJECT = Path(__file__).resolve().parents[2]

if not (_PROJECT / "pipeline" / "read").is_dir():
    raise ImportError(f"mexc_pipeline is here without its project ({_PROJECT}): pip install -e the project's folder")


def _take_out() -> dict[str, ModuleType]:
    """Remove, and return by name, the modules that are called as the project's are."""
    names = [name for name in sys.modules if name.split(".")[0] in ("config", "pipeline")]
    return {name: sys.modules.pop(name) for name in names}


@contextmanager
def _in_the_project() -> Iterator[None]:
    """Have `config` and `pipeline` be the project's."""
    theirs = _take_out()
    sys.path.insert(0, str(_PROJECT))
    try:
        yield
    finally:
        sys.path.remove(str(_PROJECT))
        _take_out()
        sys.modules.update(theirs)


with _in_the_project():
    from config import ConfigError, load_settings
    from pipeline.read import (
        BadRow,
        LoadError,
        audit_symbol,
        candles,
        depth_levels,
        hftbacktest,
        load,
        newest_day,
        read,
        top_of_book,
    )
    from pipeline.store.client import connect
    from pipeline.times import parse_time

__all__ = [
    "BadRow",
    "ConfigError",
    "LoadError",
    "audit_symbol",
    "candles",
    "connect",
    "depth_levels",
    "hftbacktest",
    "load",
    "load_settings",
    "newest_day",
    "parse_time",
    "read",
    "top_of_book",
]

for _name in __all__:
    globals()[_name].__module__ = __name__  # where pickle finds it: a pool of processes may call `load`
