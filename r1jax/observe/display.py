"""The run on the terminal: live lines where there is one, plain log lines where there is none."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Mapping

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from r1jax import supervise
from r1jax.observe.phases import Clock, Phase, Phases
from r1jax.observe.text import clock, is_unicode, number, printable, shorten

LABELS = {
    "reward/total": "reward",
    "loss": "loss",
    "preference/accuracy": "accuracy",
    "kl": "kl",
    "entropy": "entropy",
    "length/mean": "length",
    "length/truncated": "truncated",
    "groups/no_signal": "no signal",
    "grad/norm": "grad",
}
"""Metrics of a step's line in their order, after each reward by name. README.md explains them."""

NARROW = 50
"""Columns: below, there is no bar beside the numbers that say the same."""
PROMPT_LIMIT, COMPLETION_LIMIT = (600, 8), (1600, 24)
"""Characters and lines of a shown sample."""


class Display:
    """Shows a run from ``with Display(...) as display`` to the end of the block.

    On a terminal two lines at the bottom always say which step and phase runs, how far it is, and how long the rest takes.
    Elsewhere (a file, a SLURM log, CI) each phase is named when it is first entered, and again by ``heartbeat`` whenever it
    takes longer than that.

    Args:
      title: what runs, e.g. ``quickstart/grpo``.
      total_steps: the number of the last step.
      console: a rich console; None makes one for stdout.
      first_step: how many steps earlier runs have made.
      heartbeat: seconds between two lines about one phase where there is no terminal.
      time: seconds from any origin.
    """

    def __init__(
        self,
        title: str,
        total_steps: int,
        *,
        console: Console | None = None,
        first_step: int = 0,
        heartbeat: float = 30.0,
        timer: Clock = time.monotonic,
    ):
        self.title, self.total_steps = title, total_steps
        self.console = console or Console(highlight=False)
        self.live = self.console.is_interactive and self.console.file.isatty()
        self._phases = Phases(timer, lambda name: supervise.tell(phase=name))
        self._time = timer
        self._heartbeat = heartbeat
        self._step = first_step
        self._started = self._step_began = timer()
        self._durations: deque[float] = deque(maxlen=20)
        self._compiled_in_first = True
        self._tokens = 0
        self._announced: set[str] = set()
        self._last_line = self._started
        self._ended = threading.Event()
        self._live: Live | None = None

    def __enter__(self) -> Display:
        self._started = self._step_began = self._last_line = self._time()
        supervise.tell(step=self._step)
        if self.live:
            self._live = Live(get_renderable=self._status, console=self.console, transient=True, refresh_per_second=4)
            self._live.start()
            self.console.show_cursor(True)  # a run that is killed could not bring it back
        else:
            if self._step < self.total_steps:
                self._print(f"{self.title}: steps {self._step + 1} to {self.total_steps}")
            threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        return self

    def __exit__(self, error_type, *_) -> None:
        self._ended.set()
        if self._live is not None:
            self._live.stop()
            self._live = None
        ended = f"after {clock(self._time() - self._started)}, at step {self._step} of {self.total_steps}"
        if error_type is None:
            self._print(f"{self.title}: done {ended}")
        else:
            self._print(f"{self.title}: stopped {ended}" + (f", in phase {self.where}" if self.where else ""), style="red")

    def phase(self, name: str, total: int | None = None, unit: str = "") -> Phase:
        """Names what runs from now on: ``compile``, ``rollout``, ``reward``, ``update``, ``save``, ``eval``, ...

        A plain call lasts until the next; in a ``with`` it lasts for the block, and the phase around it then goes on. The same
        name may be opened any number of times. ``total`` counts what ``advance`` advances, in ``unit``.
        """
        phase = self._phases.open(name, total, unit)
        if not self.live and name not in self._announced:
            self._announced.add(name)
            self._print(f"{name}" + (f": {total:,} {unit}".rstrip() if total else ""))
        return phase

    def advance(self, n: int = 1, tokens: int = 0) -> None:
        """``n`` more of the phase's total are done, with so many tokens. Any thread may say so."""
        with self._phases.lock:
            self._phases.advance(n, tokens)
            self._tokens += tokens

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Step ``step`` has ended: prints a line with the metrics that matter most; a line of its own for ``eval/`` metrics."""
        now = self._time()
        if step > self._step:
            if self._durations and self._compiled_in_first:
                self._durations.clear()  # the first step compiles and says nothing about the others
                self._compiled_in_first = False
            self._durations.append((now - self._step_began) / (step - self._step))
        seconds, self._step_began = now - self._step_began, now
        with self._phases.lock:
            tokens, self._tokens = self._tokens, 0
        self._step = max(self._step, step)
        supervise.tell(step=self._step)
        rate = metrics.get("tokens_per_s/step", tokens / seconds if tokens and seconds > 0 else None)

        evals = {key.removeprefix("eval/"): value for key, value in metrics.items() if key.startswith("eval/")}
        if important := _important(metrics):
            end = [] if rate is None else [(f"{number(rate)} tok/s", "dim")]
            left = None if self.live else self._seconds_left()  # the live lines say it
            end += [] if left is None else [(f"{clock(left)} left", "dim")]
            width = len(str(self.total_steps))
            self._print_parts([(f"step {step:>{width}}/{self.total_steps}", "bold"), *important], end)
        if evals:
            left_out = evals.pop("left_out", 0)
            evals = {name: evals[name] for name in sorted(evals, key=lambda name: name != "pass@1")}  # what fits shows it
            parts = [(f"{name} {number(value)}", "cyan") for name, value in evals.items()]
            parts += [(f"{left_out:.0f} too long and left out", "cyan")] if left_out else []
            self._print_parts([(f"eval at step {step}", "bold cyan"), *parts], [])

    def sample(self, prompt: str, completion: str, scores: Mapping[str, tuple[float, str]], step: int) -> None:
        """Shows one answer with its rewards, ``{name: (value, why)}``; long texts lose their middle."""
        prompt = self._safe(shorten(prompt.strip("\n"), *PROMPT_LIMIT))
        completion = self._safe(shorten(completion.strip("\n"), *COMPLETION_LIMIT))
        rewards = [f"{name} {number(value)}" + (f" ({why})" if why else "") for name, (value, why) in scores.items()]
        if self.live:
            body = Group(Text(prompt, "dim"), Text(completion), *(Text(self._safe(r), "cyan") for r in rewards))
            self.console.print(Panel(body, title=f"sample at step {step}", title_align="left", border_style="dim"))
            return
        self._print(f"sample at step {step}")
        for mark, text in (("prompt", prompt), ("answer", completion), ("rewards", "\n".join(rewards))):
            for row in text.split("\n"):
                self._print(f"{mark:>9} | {row}", stamp=False)
                mark = ""

    @property
    def phases(self) -> Phases:
        return self._phases

    @property
    def last_step(self) -> int:
        """The last that was made."""
        return self._step

    @property
    def where(self) -> str:
        """What an exception left (``rollout, compile``), or the innermost phase that runs; empty if there is none."""
        return self._phases.stopped_in or (self._phases.current.name if self._phases.current else "")

    def note(self, text: str) -> None:
        """Prints a line that stays."""
        self._print(text)

    def warn(self, text: str) -> None:
        """Prints a line about what may be going wrong."""
        self._print(f"warning: {text}", style="bold red")

    def _safe(self, text: str) -> str:
        return printable(text, self.console.encoding or "utf-8")

    def _print(self, text: str, style: str = "", stamp: bool = True) -> None:
        self._last_line = self._time()
        text = self._safe(text)
        if self.live:
            self.console.print(Text(text, style))
        else:
            when = time.strftime("%H:%M:%S ") if stamp else ""
            self.console.print(escape(when + text), soft_wrap=True, highlight=False, emoji=False)

    def _print_parts(self, parts: list[tuple[str, str]], end: list[tuple[str, str]]) -> None:
        """One line of ``(text, style)``; on a terminal as many parts as fit beside ``end``, which gives way where fewer than
        two would."""
        if not self.live:
            self._print("  ".join(text for text, _ in parts + end))
            return
        room = self.console.width - sum(len(text) + 2 for text, _ in end)
        if sum(len(text) + 2 for text, _ in parts[:2]) - 2 > room:
            room, end = self.console.width, []
        line = Text(no_wrap=True, overflow="ellipsis")
        for text, style in parts:
            if len(line) and len(line) + len(text) + 2 > room:
                break
            line.append("  " if len(line) else "").append(self._safe(text), style)
        for text, style in end:
            line.append("  ").append(text, style)
        self._last_line = self._time()
        self.console.print(line)

    def _seconds_left(self) -> float | None:
        if not self._durations or self._step >= self.total_steps:
            return None
        return sum(self._durations) / len(self._durations) * (self.total_steps - self._step)

    def _phase_text(self, phase: Phase) -> str:
        parts = [phase.name]
        if phase.total is not None:
            parts.append(f"{phase.done:,}/{phase.total:,} {phase.unit}".rstrip())
        elif phase.done:
            parts.append(f"{phase.done:,} {phase.unit}".rstrip())
        if phase.tokens:
            parts.append(f"{number(phase.tokens_per_s)} tok/s")
        parts.append(clock(phase.seconds))
        if self.live and phase.tokens and len("  ".join(parts)) + 2 > self.console.width:
            del parts[-2]  # how long it has been going on says more than how fast
        return "  ".join(parts)

    def _status(self) -> Table:
        """The live lines: the run, and the phase that runs."""
        left = self._seconds_left()
        phase = self._phases.current
        width = self.console.width
        bar = min(30, width // 5) if width >= NARROW else 0
        steps = f"{self._step}/{self.total_steps}"
        times = clock(self._time() - self._started) + ("" if left is None else f", {clock(left)} left")
        room = width - bar - len(steps) - len(times) - 4
        run = Table.grid(padding=(0, 1), expand=False)
        cells = [Text(_tail(self._safe(self.title), room, self.console.encoding), "bold", no_wrap=True)]
        cells += [ProgressBar(self.total_steps, self._step, width=bar)] if bar else []
        run.add_row(*cells, Text(steps, no_wrap=True), Text(times, "dim", no_wrap=True))
        lines = Table.grid()
        lines.add_row(run)
        mark = "▸ " if is_unicode(self.console.encoding) else "> "
        text = mark + self._safe(self._phase_text(phase)) if phase else ""
        lines.add_row(Text(text, "green", no_wrap=True, overflow="ellipsis"))
        return lines

    def _beat(self) -> None:
        while not self._ended.wait(min(1.0, self._heartbeat / 4)):
            self._name_long_phase()

    def _name_long_phase(self) -> None:
        phase = self._phases.current
        now = self._time()
        if phase is None or now - max(self._last_line, phase.opened) < self._heartbeat:
            return
        silent = now - phase.last_news
        self._print(self._phase_text(phase) + (f"  (no news for {silent:.0f} s)" if silent >= self._heartbeat else ""))


def _tail(text: str, room: int, encoding: str | None) -> str:
    """At most ``room`` characters: the end, where the stage stands."""
    if len(text) <= room:
        return text
    mark = "…" if is_unicode(encoding) else "~"
    return mark + text[len(text) - max(0, room - 1) :]


def _important(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """``(text, style)`` of the metrics for a step's line, the most important first."""
    faults = [key for key in metrics if ("/errors/" in key or key == "update/skipped") and metrics[key]]
    rewards = [key for key in metrics if key.startswith("reward/") and key != "reward/total" and "/errors/" not in key]
    shown = [(label, metrics[key]) for key, label in LABELS.items() if key in metrics]
    shown[1:1] = [(key.removeprefix("reward/"), metrics[key]) for key in rewards]
    parts = [(f"{label} {number(value)}", "" if math.isfinite(value) else "bold red") for label, value in shown]
    parts[1:1] = [(f"{key.removeprefix('reward/')} {metrics[key]:g}", "bold red") for key in faults]
    return parts
