"""Before step 1: are the rewards right, is there a signal, does it fit."""

from __future__ import annotations

from r1jax.config import Pipeline, Stage
from r1jax.stages.workspace import Workspace


def check(work: Workspace) -> None:
    pass


def dry_run(settings: Stage | Pipeline, name: str) -> int:
    return 0
