"""From another folder: `pip install -e` of the project, then mexc_pipeline beside modules of the names of ours."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import nbformat
import pytest

import pipeline.read
from config import PROJECT
from local.market import frames
from pipeline.messages import parse_frame
from tests import notebook
from tests.stack import Stack, free_port, open_stack

pytestmark = pytest.mark.timeout(300)

OF_THE_PROJECT = ("pipeline", "src", "config.py", "pyproject.toml", "requirements.txt")
(EXAMPLE,) = re.findall(r"\n    (from mexc_pipeline .*?\n)(?=\n\S)", (PROJECT / "docs/DATA.md").read_text(), re.DOTALL)
START_MS = 1_790_812_800_000  # 2026-10-01
ROWS = [
    row for _, frame in islice(frames("BTC_USDT", 1, START_MS), 600) for row in parse_frame(frame, "BTC_USDT", 0).rows
]
OF_ANOTHER = """
import config, pipeline
assert (config.API_KEY, pipeline.stages) == ("mine", 3)
"""


@dataclass
class Folder:
    """A folder of somebody's own, the project that they installed, and the ClickHouse that has the rows."""

    path: Path
    python: Path
    project: Path
    stack: Stack

    @property
    def settings(self) -> str:
        """What a file of settings has to say to reach ClickHouse."""
        return "".join(f"CLICKHOUSE_{name}={self.stack.env[f'CLICKHOUSE_{name}']}\n" for name in ("PORT", "PASSWORD"))

    def run(self, script: str, **env: object) -> subprocess.CompletedProcess[str]:
        """Run a script there, with no settings but those of `env`."""
        (self.path / "bot.py").write_text(script)
        return subprocess.run(
            [self.python, "bot.py"],
            cwd=self.path,
            env={"PATH": "/usr/bin:/bin", "HOME": str(self.path)} | {name: str(value) for name, value in env.items()},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    """A copy of the project, installed into an environment that has the packages of this one besides."""
    root = tmp_path_factory.mktemp("elsewhere")
    project, environment, folder = root / "project", root / "venv", root / "bot"
    project.mkdir()
    for name in OF_THE_PROJECT:
        copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
        copy(PROJECT / name, project / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(sysconfig.get_path("purelib"))
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "-e", str(project)]
    done = subprocess.run(install, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    folder.mkdir()
    (folder / "config.py").write_text('API_KEY = "mine"\n')
    (folder / "pipeline.py").write_text("stages = 3\n")
    with open_stack(root) as stack:
        stack.clickhouse()
        stack.setup()
        stack.client.execute("INSERT INTO mexc_data.btc (ts, mt, m) VALUES", [row[:3] for row in ROWS])
        yield Folder(folder, python, project, stack)


@pytest.fixture
def bot(installed: Folder) -> Iterator[Folder]:
    """The same without any file of settings, before and after."""
    yield installed
    (installed.project / ".env").unlink(missing_ok=True)


def deals() -> int:
    return sum(row.mt == "d" for row in ROWS)


PRINT = "\nprint(minutes['deals'].sum())\n"


def test_the_documents_example_works_beside_modules_of_the_same_names(bot: Folder) -> None:
    (bot.project / ".env").write_text(bot.settings)
    for script in (OF_ANOTHER + EXAMPLE, EXAMPLE + OF_ANOTHER):
        ran = bot.run(re.sub("^    ", "", script, flags=re.MULTILINE) + PRINT)
        assert (ran.stdout, ran.stderr) == (f"{deals()}\n", "")
    assert deals() > 50


def test_settings_may_be_in_a_file_of_ones_own(bot: Folder) -> None:
    (bot.project / ".env").write_text("CLICKHOUSE_PORT=9\n")
    (bot.path / "mine.env").write_text(bot.settings)
    script = "from mexc_pipeline import load\nprint(len(load('btc', 'deals')))\n"
    assert bot.run(script, MEXC_PIPELINE_ENV="mine.env").stdout == f"{deals()}\n"
    later = f"import os, mexc_pipeline\nos.environ['MEXC_PIPELINE_ENV'] = 'mine.env'\n{script}"
    assert bot.run(later).stdout == f"{deals()}\n"
    (bot.path / "mine.env").write_text(f"{bot.settings}CLICKHOUSE_PASSWORD=wrong\n")
    password = bot.stack.env["CLICKHOUSE_PASSWORD"]
    assert bot.run(script, MEXC_PIPELINE_ENV="mine.env", CLICKHOUSE_PASSWORD=password).stdout == f"{deals()}\n"
    refused = bot.run(script, MEXC_PIPELINE_ENV="mine.env")
    assert "mexc_pipeline.LoadError" in refused.stderr
    assert "CLICKHOUSE_PASSWORD (from mine.env)" in refused.stderr


def test_rows_stream_with_what_the_documents_examples_import(bot: Folder) -> None:
    (bot.project / ".env").write_text(bot.settings)
    script = """
        from mexc_pipeline import connect, load_settings, parse_time, read, top_of_book
        settings = load_settings()
        with connect(settings) as client:
            batches = read(client, settings.clickhouse_database, "btc", "dp", start=parse_time("2026-10-01"))
            print(sum(len(top_of_book(batch.table)) for batch in batches))
    """
    ran = bot.run(f"if True:{script}")
    assert (ran.stdout, ran.stderr) == (f"{sum(row.mt == 'dp' for row in ROWS)}\n", "")


def test_a_pool_of_processes_may_load(bot: Folder) -> None:
    (bot.project / ".env").write_text(bot.settings)
    script = """
        from multiprocessing import get_context
        from mexc_pipeline import load
        if __name__ == "__main__":
            with get_context("spawn").Pool(1) as pool:
                print([len(each) for each in pool.starmap(load, [("btc", "deals"), ("eth", "deals")])])
    """
    ran = bot.run(f"if True:{script}")
    assert (ran.stdout, ran.stderr) == (f"[{deals()}, 0]\n", "")


def test_nothing_else_of_the_project_can_be_imported(bot: Folder) -> None:
    for name in ("collect", "export", "local", "config as ours; ours.PROJECT"):
        ran = bot.run(f"import mexc_pipeline\nimport {name}\n")
        assert re.search("(ModuleNotFound|Attribute)Error", ran.stderr), name


def test_all_of_the_door_is_there(bot: Folder) -> None:
    ran = bot.run("import mexc_pipeline\nprint(*mexc_pipeline.__all__)\n")
    assert set(pipeline.read.__all__) < set(ran.stdout.split())


def test_without_its_project_it_says_so_in_one_line(bot: Folder) -> None:
    (bot.path / "copied").mkdir()
    shutil.copytree(bot.project / "src", bot.path / "copied" / "src")
    ran = bot.run("import sys\nsys.path.insert(0, 'copied/src')\nimport mexc_pipeline\n")
    assert "ImportError: mexc_pipeline is here without its project" in ran.stderr


def test_the_packages_that_it_needs_are_those_of_the_project(bot: Folder) -> None:
    ran = bot.run("from importlib.metadata import requires\nprint(*requires('mexc-pipeline'), sep='\\n')\n")
    wanted = [line for line in (PROJECT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert sorted(ran.stdout.splitlines()) == sorted(wanted)


DAY = START_MS
COLLECTED = [(DAY + start * 60_000, DAY + end * 60_000) for start, end in ((720, 722), (724, 726))]


def printed(run: nbformat.NotebookNode) -> str:
    outputs = (each for cell in run.cells for each in cell.get("outputs", ()))
    return "".join(each.text for each in outputs if each.output_type == "stream")


def test_the_notebook_runs(bot: Folder, tmp_path: Path) -> None:
    (bot.project / ".env").unlink(missing_ok=True)
    with open_stack(tmp_path) as stack, notebook.archive(stack, COLLECTED) as env:
        ran = notebook.run(tmp_path, env, str(bot.python))
        deals = [row for row in stack.rows() if row[1] == "d"]
    sizes = [int(m.split("|")[1]) for _, _, m in deals]
    said = printed(ran)
    assert said.startswith("btc from 2026-10-01 00:00 to 2026-10-02 00:00 UTC\n")
    assert f" {max(sizes):,} contracts at " in said
    (percent, contracts, exact, minutes) = re.findall(
        r"([\d.]+) % of MEXC's ([\d,]+) contracts\n(\d+) of (\d+) minutes agree", said
    )[0]
    assert (exact, minutes) == ("5", "7")  # with the one that has just begun, and is empty by both
    whole = int(contracts.replace(",", ""))
    assert whole > sum(sizes)
    assert float(percent) == pytest.approx(100 * sum(sizes) / whole, abs=0.005)


def test_the_notebook_runs_on_a_single_deal_and_without_mexc(bot: Folder, tmp_path: Path) -> None:
    (bot.project / ".env").unlink(missing_ok=True)
    client = bot.stack.client
    client.execute("CREATE DATABASE sparse")
    client.execute("CREATE TABLE sparse.btc AS mexc_data.btc")
    client.execute("INSERT INTO sparse.btc (ts, mt, m) VALUES", [(START_MS, "d", "84000.1|7|1")])
    elsewhere = {"CLICKHOUSE_DATABASE": "sparse", "MEXC_REST_URL": f"http://127.0.0.1:{free_port()}"}
    said = printed(notebook.run(tmp_path, bot.stack.env | elsewhere, str(bot.python)))
    assert "buy 7 contracts at 84,000.1 at 00:00:00.000000\n" in said
    assert "127.0.0.1" in said.splitlines()[-1], "what fails"


def test_the_notebook_is_saved_with_what_it_gave() -> None:
    saved = nbformat.read(notebook.NOTEBOOK, as_version=4)
    cells = [cell for cell in saved.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [each for cell in cells for each in cell.outputs]
    assert {each.get("name", "stdout") for each in outputs} == {"stdout"}
    assert sum("image/png" in each.get("data", ()) for each in outputs) == 5
    assert re.search(r"\d of 1,440 minutes agree exactly", printed(saved))
    assert notebook.NOTEBOOK.stat().st_size < 1_000_000
