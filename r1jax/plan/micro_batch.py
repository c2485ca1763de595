"""How many packed rows go through the model at once, where the config leaves it to the memory that is free."""

from __future__ import annotations

import dataclasses

from r1jax import config, sharding
from r1jax.plan import memory

TOKENS, TOKENS_ON_CPU = 2**15, 2**12
"""At most so many tokens of a device go through it at once, if more than one row fits: an accelerator's products are large
enough then, and rows that a batch does not fill are computed too."""


def choose(
    stage: config.Stage, model: config.Model, mesh: sharding.AnyMesh, *, before: int | None = None,
    capacity: int | None = None, teacher: config.Model | None = None,
) -> config.Stage:  # fmt: skip
    """The stage with a number for ``micro_batch`` "auto": the largest multiple of the devices that share a batch (of twice
    as many with ``overlap`` 2) which ``memory.table`` says fits, which an update's sequences can fill, and which has at most
    ``TOKENS`` per device. Where nothing fits it is the smallest, for ``shortage.check`` to tell. Another stage is returned as
    it is.

    Args:
      before: what was chosen when the run began. It is chosen again if it still can be, so that a resumed run adds the same
        numbers in the same order.
      capacity: bytes per device; None asks the devices. With several processes every one must ask.
      teacher: as for ``memory.table``.
    """
    if stage.micro_batch != "auto":
        return stage
    ways = sharding.batch_ways(mesh, sharding.TRAIN) * model.overlap
    if capacity is None:
        capacity = memory.available(mesh)

    def of(rows: int) -> config.Stage:
        return dataclasses.replace(stage, micro_batch=rows)

    def fits(rows: int) -> bool:
        return memory.table(of(rows), model, mesh, capacity=capacity, teacher=teacher).fits

    if before is not None and before % ways == 0 and fits(before):
        return of(before)
    tokens = TOKENS_ON_CPU if sharding.platform_of(mesh) == "cpu" else TOKENS
    most = max(1, min(tokens * mesh.shape["context"] // (stage.sequence_length * model.overlap), -(-sequences(stage) // ways)))
    if fits(most * ways):
        return of(most * ways)
    good, bad = 1, most  # the smallest is taken in any case
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle * ways) else (good, middle)
    return of(good * ways)


def sequences(stage: config.Stage) -> int:
    """Of an update; at the worst each has a row to itself."""
    return stage.questions * stage.group if isinstance(stage, config.GRPO) else stage.batch


def line(stage: config.Stage, mesh: sharding.AnyMesh) -> str:
    """What was chosen, in words."""
    ways = sharding.batch_ways(mesh, sharding.TRAIN)
    shared = f" on {ways} devices" if ways > 1 else ""
    return f"micro_batch auto: {stage.micro_batch} rows of {stage.sequence_length} tokens{shared}"
