"""What setup.sh and the image install is locked, and the locks are those of the requirements."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

from config import PROJECT

LOCKS = {"requirements.txt": "requirements.lock", "requirements-collector.txt": "requirements-collector.lock"}


def locked(name: str) -> dict[str, str]:
    """Return the packages of a lock file with their (last) versions; each has to have hashes."""
    found = {}
    for entry in re.split(r"\n(?=\S)", (PROJECT / name).read_text()):
        if entry.startswith("#"):
            continue
        package, version = re.match(r"([\w.-]+)==([\w.]+)", entry).groups()  # type: ignore[union-attr]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), package
        found[package] = version
    return found


@pytest.mark.parametrize("requirements", LOCKS)
def test_a_lock_has_what_the_requirements_ask_for(requirements: str) -> None:
    versions = locked(LOCKS[requirements])
    for line in (PROJECT / requirements).read_text().splitlines():
        if line and not line.startswith("#"):
            asked = Requirement(line)
            assert versions[asked.name] in asked.specifier, f"{line}: make lock"


def test_the_image_has_the_versions_that_setup_installs() -> None:
    assert locked("requirements-collector.lock").items() <= locked("requirements.lock").items()


def test_both_install_from_the_locks_and_take_nothing_else() -> None:
    for name, lock in (("setup.sh", "requirements.lock"), ("Dockerfile", "requirements-collector.lock")):
        (line,) = re.findall(r".*pip install.*", (PROJECT / name).read_text().replace("\\\n", " "))
        assert "--require-hashes" in line
        assert lock in line


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", PROJECT / ".ci" / "audit.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_vulnerability_is_told(audit: ModuleType) -> None:
    vulnerable = {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1", "2"]}]}
    sound = {"name": "b", "version": "1", "vulns": []}
    unknown = {"name": "c", "skip_reason": "Dependency not found"}
    told = "a 1: PYSEC-1, mended in 1.1, 2"
    nothing_known = "audit: of 1 of {} packages nobody who could be reached knows anything"
    assert audit.judge({"dependencies": [sound]}) == ([], True)
    assert audit.judge({"dependencies": [vulnerable, sound]}) == ([told], False)
    assert audit.judge({"dependencies": [unknown, sound]}) == ([nothing_known.format(2)], True)
    assert audit.judge({"dependencies": [vulnerable, unknown, sound]}) == ([told, nothing_known.format(3)], False)


def test_the_bill_of_materials_has_each_package(tmp_path: Path) -> None:
    tool = Path(sys.executable).with_name("cyclonedx-py")
    file = tmp_path / "sbom.json"
    subprocess.run([tool, "requirements", PROJECT / "requirements.lock", "--output-file", file], check=True)
    listed = {component["name"] for component in json.loads(file.read_text())["components"]}
    assert listed == set(locked("requirements.lock"))
