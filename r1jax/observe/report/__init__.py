"""``r1jax report``: runs on one page.

    runs -> collect (one value of JSON) -> page (HTML), figures (PNG and CSV), serve (while the run goes on)

The page is ``page.html``, ``page.css`` and ``page.js``: it holds all that it shows and asks nothing of any network.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from r1jax import mirror, rundir
from r1jax.config.base import ConfigError
from r1jax.config.observe import Report
from r1jax.observe import runs
from r1jax.observe.metrics import FILE as METRICS
from r1jax.observe.report import figures
from r1jax.observe.report.collect import collect
from r1jax.observe.report.page import render
from r1jax.observe.report.serve import Server
from r1jax.observe.samples import FILE as SAMPLES

FILE = "report.html"
SEVERAL = Path("report.html")
"""Of more than one run, here."""


def write(run: Path) -> Path:
    """Writes ``RUN/report.html`` alone.

    Raises:
      ValueError: the run's files cannot be read.
      OSError: the page cannot be written.
    """
    return _put(run / FILE, render(collect([runs.read(run)])))


def report(command: Report, console: Console | None = None) -> int:
    """Writes the page of one run or several, and its figures; or serves it.

    Returns:
      0, the exit code.

    Raises:
      ConfigError: the user's mistakes.
    """
    console = console or Console(highlight=False)
    paths = [rundir.find(name) if mirror.is_remote(name) else Path(name) for name in command.runs]
    found = [runs.read(path) for path in paths]
    out = command.out or (paths[0] / FILE if len(paths) == 1 else SEVERAL)
    if command.follow:
        return follow(paths, command, console)
    data = collect(found, command.bench)
    try:
        _put(out, render(data))
        console.print(f"{out} ({out.stat().st_size / 1e6:.1f} MB)", markup=False, soft_wrap=True)
        if command.figures:
            figures.write(data, out.with_suffix(""))
            console.print(f"{out.with_suffix('')}/ (PNG and CSV)", markup=False, soft_wrap=True)
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}; name another file with --out") from error
    return 0


def follow(paths: Sequence[Path], command: Report, console: Console) -> int:
    """Serves the page until interrupted."""
    try:
        server = Server(
            command.port, lambda: sign(paths), lambda: collect([runs.read(path) for path in paths], command.bench)
        )
    except OSError as error:
        raise ConfigError(f"cannot serve at port {command.port}: {error.strerror}; name another with --port") from error
    with server:
        said = f"{server.url} shows {', '.join(command.runs)} as it goes on; Ctrl-C ends it"
        console.print(said, markup=False, soft_wrap=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0


def sign(paths: Sequence[Path]) -> str:
    """Another one whenever something that a page shows has changed."""
    files = [f for path in paths for name in (METRICS, SAMPLES, "*.json") for f in (*path.glob(name), *path.glob(f"*/{name}"))]
    states = []
    for file in sorted(set(files)):
        with contextlib.suppress(FileNotFoundError):  # it is being replaced
            stat = file.stat()
            states.append((str(file), stat.st_size, stat.st_mtime_ns))
    held = [rundir.is_held(path) for path in paths]
    return f"{hash((tuple(states), tuple(held))) & (1 << 62) - 1:x}"


def _put(file: Path, text: str) -> Path:
    """As a whole, so that a browser never reads a half."""
    part = file.with_name(f".{file.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)
    return file
