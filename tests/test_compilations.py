"""What is compiled, and when: a program for each shape, at its first use."""

import contextlib
import io

import jax.monitoring
import tiny
from rich.console import Console

from r1jax import config, rundir
from r1jax.observe.compiling import COMPILED
from r1jax.stages import grpo, workspace
from r1jax.stages.prepare import prepare

ROUNDS = 10


@contextlib.contextmanager
def compilations():
    """A list that grows by one at each compilation in the block."""
    seen = []

    def heard(event, seconds, **_):
        if event == COMPILED:
            seen.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)


def test_rounds_of_other_lengths_compile_nothing_after_the_first_use_of_a_bucket(tmp_path):
    """Caps that rise and fall, and stop strings, bring answers of other lengths. A cap is a bucket; both have been used in the
    first four rounds, and the reference has been refreshed."""
    stage = tiny.grpo(
        steps=2 * ROUNDS + 2, reference_every=4, length_schedule=((4, 3), (8, 8), (12, 3), (16, 8)),
        sampling=config.Sampling(max_new_tokens=8, stop=tiny.STOP), checkpoint=config.Checkpoint(every=100),
    )  # fmt: skip
    run, counts = rundir.create("tiny", config.to_json(stage), tmp_path / "run"), []
    try:
        with compilations() as seen, workspace.open_workspace(prepare(stage), run, "tiny") as work:
            work.display.console = Console(file=io.StringIO())
            for _ in range(ROUNDS):
                before = len(seen)
                grpo.play_round(work)
                counts.append(len(seen) - before)
    finally:
        run.close()
    lengths = [len(row["completion"]) for row in tiny.samples(run.path)]
    assert counts[0] > 0 and len(set(lengths)) > 3
    assert sum(counts[4:]) == 0, counts
