"""What a user can set or say is in the README, and the links of the docs lead somewhere."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from config import PROJECT, Settings
from pipeline.read.export import FORMATS, TYPES

README = (PROJECT / "README.md").read_text()
DOCS = [*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md")]


@pytest.mark.parametrize("field", dataclasses.fields(Settings), ids=lambda field: field.name)
def test_the_readme_has_each_setting_with_its_default(field: "dataclasses.Field[object]") -> None:
    (line,) = (line for line in README.splitlines() if re.match(rf"\|[^|]*\b{field.name.upper()}\b", line))
    default = f"{field.default:g}" if isinstance(field.default, float) else str(field.default) or "empty"
    assert default in line


@pytest.mark.parametrize("script", ["ch_setup.py", "verif.py", "export.py"])
def test_the_readme_has_each_option(script: str) -> None:
    usage = subprocess.run([sys.executable, script, "--help"], cwd=PROJECT, capture_output=True, text=True, check=True)
    for option in set(re.findall(r"--[a-z-]+", usage.stdout)) - {"--help"}:
        assert f"`{option}" in README or f"{script} {option}" in README


@pytest.mark.parametrize("choice", [*TYPES, *FORMATS])
def test_the_readme_has_each_type_and_format_of_export(choice: str) -> None:
    assert re.search(rf"^\| `--(type|format)` \|.*`{choice}`", README, re.MULTILINE)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_to_files(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target
