"""The guards of a stage: what they have seen of its updates, what they say, and why it is to stop."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from r1jax import sharding
from r1jax.config.guards import Guards
from r1jax.observe import guards as rules
from r1jax.types import PackedBatch


class Guarding:
    """Sees every update and its metrics. Rules over metrics, which are about answers and what they earn, are looked at by the
    first process alone, which has the rows; what is not finite all see alike.

    Args:
      run: the stage's run directory.
      rows: of metrics.jsonl, up to the step that the run goes on from; None where another process has them.
      skipped: updates that were not applied before it.
      in_a_row: the last of these, up to that step.
    """

    def __init__(self, guards: Guards, run: Path, rows: list[dict] | None, skipped: int, in_a_row: int):
        self.reason = ""
        """Why the run is to stop at the end of its round; empty while it is not."""
        # A run that was stopped over so many and is started again begins to count anew.
        self.in_a_row = in_a_row if in_a_row < guards.not_finite else 0
        self._guards, self._run, self._rows, self._skipped = guards, run, rows, skipped
        self._batches: dict[int, tuple[PackedBatch, int, float]] = {}

    def took(self, step: int, batch: PackedBatch, count: int, denominator: float) -> None:
        """Keeps what the update was made of until its metrics are seen."""
        self._batches[step] = batch, count, denominator

    def saw(self, step: int, values: Mapping[str, float]) -> tuple[dict[str, float], list[str]]:
        """The metrics of an update: returns the marks of the rules that hold, for the same row, and a line for each that begins
        to. Other rows, of an evaluation for instance, are let through."""
        batch = self._batches.pop(step, None)
        if "update/skipped" not in values:
            return {}, []
        self._count_not_finite(step, values, batch)
        if self._rows is None or rules.KEYS["reward"] not in values:  # SFT is to make the policy surer of itself
            return {}, []
        held = rules.holding(self._guards, [*self._rows, values])
        begun = rules.beginning(self._guards, self._rows, held)
        marks = {rules.MARK + name: 1.0 for name in held}
        self._rows.append({**values, **marks})
        for name in begun:
            if name in self._guards.stop and not self.reason:
                self.reason = rules.line(name, held[name])
        return marks, [rules.line(name, held[name]) for name in begun]

    def _count_not_finite(
        self, step: int, values: Mapping[str, float], batch: tuple[PackedBatch, int, float] | None
    ) -> None:
        skipped = int(values["update/skipped"])
        self.in_a_row = self.in_a_row + 1 if skipped > self._skipped else 0
        self._skipped = skipped
        if self.in_a_row == self._guards.not_finite > 0 and batch is not None:
            self.reason = self._explain(step, values, *batch)

    def _explain(self, step: int, values: Mapping[str, float], batch: PackedBatch, count: int, denominator: float) -> str:
        """Saves the batch, and says what happened and where it is."""
        arrays = {name: sharding.fetch(x) for name, x in dataclasses.asdict(batch).items() if x is not None}
        told = {name: values[name] for name in ("loss", "grad/norm")}
        file = self._run / f"not-finite-{step}.npz"
        place = f"the last one's batch is in {file} (numpy.load; the fields of r1jax.types.PackedBatch)"
        if jax.process_index() == 0:
            try:
                np.savez(file, step=step, count=count, denominator=denominator, **told, **arrays)
            except OSError as error:
                place = f"its batch could not be written to {file}: {error.strerror}"
        return (
            f"{self.in_a_row} updates in a row (guards.not_finite) had a loss or a gradient that is not finite, at step {step} "
            f"loss {told['loss']:g} and norm {told['grad/norm']:g}; none was applied; {broken(arrays)}; {place}; given again, "
            "the command goes on with the batches after these, and another optimizer.lr needs a new run, with --init RUN@STEP"
        )


def broken(arrays: Mapping[str, np.ndarray]) -> str:
    """Which numbers of a batch are not finite, in words."""
    found = []
    for name, x in arrays.items():
        if np.issubdtype(x.dtype, np.floating) and (wrong := int((~np.isfinite(x) & arrays["mask"]).sum())):
            at = np.unravel_index((~np.isfinite(x) & arrays["mask"]).argmax(), x.shape)
            found.append(f"{wrong} of its {name} are not finite, the first at {list(map(int, at))}")
    return ", ".join(found) or "all numbers of its batch are finite, so they come from the model or its learning rate"
