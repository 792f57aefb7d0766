"""docs/notebooks/day.ipynb, run as Jupyter runs it: by the tests, and by `python3 -m tests.notebook`.

The latter writes its outputs anew, of a whole and quiet day of the simulated market, in some minutes.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice, pairwise
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from config import PROJECT
from local.market import Market
from tests.days import Span, market_rows, store
from tests.stack import Stack, open_stack
from tests.web import Answer, serving

NOTEBOOK = PROJECT / "docs" / "notebooks" / "day.ipynb"

_DAY = int(datetime(2026, 10, 1, tzinfo=UTC).timestamp() * 1000)
_MINUTE = 60_000
_CUTS = ((3 * 60, 3 * 60 + 40), (13 * 60, 13 * 60 + 3), (18 * 60 + 30, 18 * 60 + 31))  # minutes of the day
_PACE = 0.25  # of the market: a quiet day is made in a minute
_KEPT = 2_000  # bars that REST gives


def run(folder: Path, env: Mapping[str, str], python: str = sys.executable) -> nbformat.NotebookNode:
    """Return the notebook as it is after all its cells were run in a folder. Raises CellExecutionError."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    kernels = folder / ".kernels"
    (kernels / "archive").mkdir(parents=True)
    command = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "archive", "language": "python"}
    (kernels / "archive" / "kernel.json").write_text(json.dumps(spec))
    manager = AsyncKernelManager(
        kernel_name="archive",
        kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(kernels)]),
        connection_file=str(folder / ".kernel.json"),
    )
    client = NotebookClient(
        notebook, km=manager, timeout=300, record_timing=False, resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=dict(env))
    return notebook


@contextmanager
def archive(stack: Stack, collected: Sequence[Span], pace: float = 1.0) -> Iterator[dict[str, str]]:
    """Start ClickHouse, store what is collected of a market in some spans, while it goes on, and serve its klines.

    Give the environment to read it with.
    """
    stack.clickhouse()
    stack.setup()
    market = Market("BTC_USDT", 4)
    rows = market_rows("BTC_USDT", [(collected[0][0], collected[-1][1])], market=market, pace=pace)
    cuts = [(before[1], after[0]) for before, after in pairwise(collected)]
    kept = (row for row in rows if not any(start <= row.ts_ms < end for start, end in cuts))
    while chunk := list(islice(kept, 50_000)):
        store(stack, chunk)

    def answer(path: str) -> Answer:
        query = parse_qs(urlsplit(path).query)
        start, end = (int(query[name][0]) for name in ("start", "end"))
        klines = market.klines(start, end, _KEPT, collected[-1][1])
        return 200, {}, f'{{"success":true,"code":0,"data":{klines}}}'.encode()

    with serving(answer) as web:
        yield stack.env | {"MEXC_REST_URL": web.url}


def main() -> None:
    """Write the outputs into the notebook anew."""
    edges = [0, *(minute for cut in _CUTS for minute in cut), 24 * 60]
    spans = [(_DAY + start * _MINUTE, _DAY + end * _MINUTE) for start, end in zip(edges[::2], edges[1::2], strict=True)]
    with (
        tempfile.TemporaryDirectory() as directory,
        open_stack(Path(directory)) as stack,
        archive(stack, spans, _PACE) as env,
    ):
        notebook = run(Path(directory), env | {"PYTHONPATH": str(PROJECT / "src")})
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
