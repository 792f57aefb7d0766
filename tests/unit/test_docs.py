"""What a user can set or say is in the docs, their links lead somewhere, and nothing names what is not there."""

import ast
import dataclasses
import io
import pkgutil
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from config import BTC_CONFIG, PROJECT, Settings
from pipeline.messages import parse_frame
from pipeline.read.export import FORMATS, TYPES

DOCS = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md"), *PROJECT.glob("monitoring/*.md")])
PACKAGES = "pipeline", "local", "bench", "tests"
FOLDERS = *PACKAGES, "src", "docs", "docker", "monitoring"
SOURCES = sorted([*PROJECT.glob("*.py"), *(path for folder in FOLDERS for path in (PROJECT / folder).rglob("*.py"))])
COMMANDS = (PROJECT / "docs/COMMANDS.md").read_text()
SETTINGS = (PROJECT / "docs/SETTINGS.md").read_text()


def name(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def test_the_readme_is_short() -> None:
    assert len((PROJECT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("field", dataclasses.fields(Settings), ids=lambda field: field.name)
def test_the_docs_have_each_setting_with_its_default(field: "dataclasses.Field[object]") -> None:
    (line,) = (line for line in SETTINGS.splitlines() if re.match(rf"\|[^|]*\b{field.name.upper()}\b", line))
    default = f"{field.default:g}" if isinstance(field.default, float) else str(field.default) or "empty"
    assert default in line


def test_docker_compose_passes_each_setting_or_the_docs_say_which_it_does_not() -> None:
    compose = (PROJECT / "docker-compose.yml").read_text()
    environment = re.search(r"^x-environment: &environment\n((?:  .*\n)+)", compose, re.MULTILINE)
    assert environment
    clients = compose.partition("\nx-client-environment: ")[2].partition("\nx-image: ")[0]
    passed = set(re.findall(r"^  (\w+): \$\{\1:", environment[1] + clients, re.MULTILINE))
    others = re.search(r"^In Docker, `\.env` .*\n(?:.+\n)+", SETTINGS, re.MULTILINE)
    assert others
    known = {field.name.upper() for field in dataclasses.fields(Settings)}
    assert known & set(re.findall(r"\b[A-Z][A-Z_]+\b", others[0])) == known - passed


@pytest.mark.parametrize("script", ["ch_setup.py", "collect.py", "verif.py", "export.py", "replay.py", "plot.py"])
def test_the_docs_have_each_option_and_no_other(script: str) -> None:
    usage = subprocess.run([sys.executable, script, "--help"], cwd=PROJECT, capture_output=True, text=True, check=True)
    section = COMMANDS.split(f"\n## {script}\n")[1].split("\n## ")[0]
    documented = {
        option
        for line in section.splitlines()
        if line.startswith("| `")
        for option in re.findall(r"--[a-z-]+", line.split("|")[1])
    }
    assert documented == set(re.findall(r"--[a-z-]+", usage.stdout)) - {"--help"}


@pytest.mark.parametrize("choice", [*TYPES, *FORMATS])
def test_the_docs_have_each_type_and_format_of_export(choice: str) -> None:
    assert re.search(rf"^\| `--(type|format)` \|.*`{choice}`", COMMANDS, re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """Return what a link into a document may have after its #, made of the headings as GitHub does."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCS, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)", path.read_text()):
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def prose(path: Path) -> Iterator[str]:
    """Yield what a file says to people: a document's text; the docstrings and comments of a module."""
    text = path.read_text()
    if path.suffix != ".py":
        yield text
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def named(text: str) -> set[str]:
    """Return the paths and the modules of this project that a text names, such as `bench/cpu.py` and `bench.cpu`."""
    paths = re.findall(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./-]*[\w-]", text)
    modules = re.findall(rf"(?<![\w./-])(?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+", text)
    return {*paths, *modules}


def is_there(found: str) -> bool:
    """Return whether there is a file or folder, a module, or something in a module, of that name."""
    if "/" in found:
        return (PROJECT / found).exists()
    try:
        pkgutil.resolve_name(found)
    except (ImportError, AttributeError):
        return False
    return True


# The change log tells what things were called before.
@pytest.mark.parametrize("path", [path for path in (*DOCS, *SOURCES) if path.name != "CHANGELOG.md"], ids=name)
def test_what_is_named_is_there(path: Path) -> None:
    assert [found for text in prose(path) for found in sorted(named(text)) if not is_there(found)] == []


def test_how_far_the_levels_of_btc_reach_is_what_a_recorded_book_says() -> None:
    (said,) = re.findall(
        r"BTC_USDT's 20 levels.*?at ([\d,.]+) USDT.*?([\d.]+) USDT.*?([\d.]+) basis points",
        (PROJECT / "docs/DATA.md").read_text(),
        re.DOTALL,
    )
    frames = (PROJECT / "tests/data/mexc-frames.jsonl").read_text().splitlines()
    rows = [row for raw in frames for row in parse_frame(raw, "BTC_USDT", 0).rows if row.mt == "dp"]
    best = Decimal(rows[-1].m.removeprefix("[").partition(",")[0])
    assert BTC_CONFIG["contract"]
    reach = 19 * BTC_CONFIG["contract"].price_unit
    assert said == (f"{best:,}", f"{reach}", f"{reach / best * 10_000:.2f}")


def test_volumes_have_one_name_in_all_documents() -> None:
    commands = " ".join(path.read_text() for path in DOCS)
    assert set(re.findall(r"[\w-]+_clickhouse_data\b", commands)) == {"mexc-pipeline_clickhouse_data"}


def test_each_test_that_the_docs_name_is_there() -> None:
    there = "\n".join(path.read_text() for path in (PROJECT / "tests").rglob("test_*.py"))
    named_tests = {found for path in DOCS for found in re.findall(r"`(test_\w+)`", path.read_text())}
    assert len(named_tests) > 20
    assert [each for each in sorted(named_tests) if f"def {each}(" not in there] == []


@pytest.mark.parametrize(
    "text",
    [
        "`pipeline/decode.py` has it",
        "see pipeline.decode.",
        "python3 -m pipeline.health",
        "pipeline.read.decode.no_such_function",
        "tests/integration/test_read.py",
        "(docs/DATABASE.md)",
        "bench.no_such_benchmark",
    ],
)
def test_a_name_of_what_is_not_there_is_found(text: str) -> None:
    assert [is_there(found) for found in named(text)] == [False]


@pytest.mark.parametrize(
    "text",
    [
        "`pipeline/read/decode.py`, and pipeline/show/assets/",
        "python3 -m pipeline.collect.health",
        "by pipeline.read.load.",
        "pipeline.store.compact.compact",
        "docs/DATA.md#columns",
    ],
)
def test_a_name_of_what_is_there_is_taken(text: str) -> None:
    assert named(text)
    assert all(is_there(found) for found in named(text))
