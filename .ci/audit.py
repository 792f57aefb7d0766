"""Known vulnerabilities of what a lock file installs, as far as somebody who knows of them can be reached.

    python audit.py requirements.lock

In: a lock file with hashes. Out: a line for each vulnerability, exit code 1 if there are any. Where no database can be
reached, it says so: nothing is known then, and exit code 0 is not to be taken for a clean bill.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def judge(report: dict[str, Any]) -> tuple[list[str], bool]:
    """Return what there is to say of pip-audit's report, a line each, and whether nothing speaks against it."""
    packages = report["dependencies"]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    found = [
        f"{package['name']} {package['version']}: {each['id']}, mended in {', '.join(each['fix_versions']) or 'none'}"
        for package in packages
        for each in package.get("vulns", [])
    ]
    if unknown:
        found.append(f"audit: of {len(unknown)} of {len(packages)} packages nobody who could be reached knows anything")
    return found, len(found) == bool(unknown)


def main(lock: str) -> int:
    """Audit a lock file; return the exit code."""
    options = ["--require-hashes", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
    command = [str(Path(sys.executable).with_name("pip-audit")), "-r", lock, *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        lines, is_clean = judge(json.loads(result.stdout))
    except ValueError:  # it ends with a traceback where there is no network
        last = (result.stderr.strip().splitlines() or ["it said nothing"])[-1]
        lines, is_clean = [f"audit: {lock} was not audited: {last}"], True
    print("\n".join(lines) or f"audit: no known vulnerability in {lock}")
    return 0 if is_clean else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
