"""The house: imports go down between its wings, and forward along a frame's way."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest

from config import PROJECT

MODULES = sorted((PROJECT / "pipeline").rglob("*.py"))
GROUND = "ground"
BELOW = {
    "show": {"show", "read", "store", GROUND},
    "read": {"read", "store", GROUND},
    "collect": {"collect", "store", GROUND},
    "store": {"store", GROUND},
    GROUND: {GROUND},
}
"""What each wing may import."""

WAY = ("feed", "gaps", "once", "journal", "table", "stripelog", "historylog", "inserts")
"""A frame's way within `collect`."""

WIRING = ("intake", "collector", "fleet")
"""These see the whole of it, and of each other what is before them here."""

WATCHERS = ("stats", "health", "metrics", "voice")
"""They look at the way, and nothing on it knows of them but what wires it."""

TOOLS = ("backoff", "channels", "errors", "autocompact", "lease", "salvage", "lines")
"""For whoever needs them; they know nothing of the way."""


def imports(tree: ast.AST, package: str = "") -> list[str]:
    """Return the full names of all that is imported, wherever in the text that stands; `from a import b` gives a.b."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            found += [f"{origin}.{each.name}" for each in node.names]
    return found


def wing(name: str) -> str | None:
    """Return the wing of a module of the pipeline; None for other modules."""
    first, *rest = name.split(".")
    if first != "pipeline":
        return None
    return rest[0] if rest and rest[0] in BELOW else GROUND


def step(name: str) -> str:
    """Return the module of a wing, such as ``journal``, that a full name is or is in."""
    return [*name.split("."), "", ""][2]


def wrong(importer: str, imported: Iterable[str]) -> list[str]:
    """Return those of `imported` that a module, both by full names, has no right to import."""
    here, module = wing(importer), step(importer)
    assert here is not None

    def may(name: str) -> bool:
        there = wing(name)
        if there is None:
            return True
        if there not in BELOW[here]:
            return False
        return not here == there == "collect" or step(name) == module or is_forward(module, step(name))

    return [name for name in imported if not may(name)]


def is_forward(importer: str, imported: str) -> bool:
    if imported in TOOLS:
        return importer not in TOOLS
    if importer in WIRING:
        return imported not in WIRING or WIRING.index(imported) < WIRING.index(importer)
    if importer in WATCHERS:
        return imported not in WIRING
    return importer in WAY and imported in WAY[WAY.index(importer) + 1 :]


def full_name(path: Path) -> str:
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=full_name)
def test_imports_go_down_and_forward(path: Path) -> None:
    package = ".".join(path.relative_to(PROJECT).parent.parts)
    assert wrong(full_name(path), imports(ast.parse(path.read_text()), package)) == []


def test_each_module_of_collect_has_its_place() -> None:
    modules = {path.stem for path in MODULES if path.parent.name == "collect"} - {"__init__"}
    assert modules == {*WAY, *WIRING, *WATCHERS, *TOOLS}


@pytest.mark.parametrize(
    ("importer", "text"),
    [
        ("pipeline.store.client", "from pipeline.read import load"),
        ("pipeline.store.client", "def f():\n    import pipeline.show.page"),
        ("pipeline.read.decode", "from pipeline import collect"),
        ("pipeline.collect.health", "if TYPE_CHECKING:\n    from pipeline.read.decode import load"),
        ("pipeline.show.watch", "from pipeline.collect.health import check"),
        ("pipeline.messages", "from pipeline.store.schema import ENGINE"),
        ("pipeline.messages", "from .store import schema"),
        ("pipeline.collect.journal", "from pipeline.collect.feed import Feed"),
        ("pipeline.collect.table", "from pipeline.collect import journal"),
        ("pipeline.collect.table", "from . import journal"),
        ("pipeline.collect.feed", "from pipeline.collect.stats import Stats"),
        ("pipeline.collect.backoff", "from pipeline.collect.feed import Feed"),
        ("pipeline.collect.metrics", "from pipeline.collect.collector import collect"),
    ],
)
def test_what_goes_up_across_or_back_is_found(importer: str, text: str) -> None:
    package = importer.rpartition(".")[0]
    assert len(wrong(importer, imports(ast.parse(text), package))) == 1


@pytest.mark.parametrize(
    ("importer", "text"),
    [
        ("pipeline.show.page", "from pipeline.read.quality import Gap"),
        ("pipeline.collect.gaps", "from pipeline.collect.journal import Journal"),
        ("pipeline.collect.collector", "from pipeline.collect.metrics import Metrics"),
        ("pipeline.collect.table", "from pipeline.store.compact import resume"),
    ],
)
def test_what_goes_down_or_forward_may(importer: str, text: str) -> None:
    assert wrong(importer, imports(ast.parse(text))) == []


def test_a_collector_imports_nothing_large() -> None:
    large = {"pandas", "pyarrow", "chdb", "numpy", "rich", "prometheus_client"}
    imported = {
        name.split(".")[0]
        for path in (PROJECT / "pipeline/collect").glob("*.py")
        if path.stem != "metrics"  # imported only where METRICS_PORT is set
        for name in imports(ast.parse(path.read_text()))
    }
    assert imported & large == set()
