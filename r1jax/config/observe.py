"""The arguments of the commands that look at runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from r1jax.config.base import ConfigError


@dataclass(frozen=True)
class Report:
    """Show a run, a pipeline or several runs as one HTML page, with PNG and CSV files beside it."""

    runs: tuple[str, ...]
    """Run directories, also on gs://. Several are laid side by side, with what their configs differ in."""
    out: Path | None = None
    """The page to write. None is RUN/report.html, and of several runs report.html here. The other files go into a folder of
    the same name without the ending."""
    figures: bool = True
    """Write the PNG and CSV files too."""
    bench: tuple[Path, ...] = ()
    """Files that ``r1jax bench --out`` wrote, whose figures the page is to show."""
    follow: bool = False
    """Write nothing, but serve the page on this machine (127.0.0.1) while the run goes on, which lies on this machine too."""
    port: int = 8321
    """To serve at; 0 takes a free one."""

    def __post_init__(self):
        if not self.runs:
            raise ConfigError("name a run, as in `r1jax report runs/NAME`; `r1jax runs` lists those in runs/")
        if self.out is not None and self.out.suffix != ".html":
            raise ConfigError(f"--out is {self.out}; the page is HTML, so name a file NAME.html")
        if self.follow and (away := [run for run in self.runs if run.startswith("gs://")]):
            raise ConfigError(f"--follow reads files of this machine, and {away[0]} is in a bucket; write the page without it")
        if not 0 <= self.port < 65_536:
            raise ConfigError(f"--port is {self.port}; it must be from 0 to 65535")


@dataclass(frozen=True)
class Runs:
    """List the runs in a folder: how they are, where they stand, and their last score."""

    folder: Path = Path("runs")
    """That holds run directories."""
    json: bool = False
    """As a list of JSON objects."""


@dataclass(frozen=True)
class Samples:
    """Show the rollouts of a run."""

    run: str
    """A run directory, also on gs://; of a pipeline also one of its stages, RUN/STAGE."""
    follow: bool = False
    """Go on as new ones are written."""
    where: tuple[str, ...] = ()
    """Only those for which all of these hold: NAME=VALUE, NAME!=VALUE, or NAME and a NUMBER with <, <=, > or >= between, as in
    ``accuracy=0``, ``"step>=100"``, ``truncated=1``, ``accuracy.status=timeout``. Names are the rewards and step, source,
    prompt_id, sample, answer, reward, advantage, finish, truncated, length, held_out, dropped."""
    text: str = ""
    """Only those with this text in the prompt or the answer, in any case."""
    last: int = 10
    """How many of the newest; 0 shows all."""

    def __post_init__(self):
        if self.last < 0:
            raise ConfigError(f"--last is {self.last}; it must be >= 0 (0 shows all)")
