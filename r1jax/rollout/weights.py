"""A trainer's weights in the layout and the types of a sampler."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax

from r1jax import params as parameters


def fits(x: Any, wanted: Any, where: jax.sharding.Sharding) -> bool:
    """Whether an array of a trainer has the dtype of ``wanted`` and lies as a sampler wants it."""
    return x.dtype == wanted.dtype and x.sharding.is_equivalent_to(where, x.ndim)


class Weights:
    """Takes weights over, round after round. What does not move is taken once, and not copied where type and layout are the
    trainer's already: the trainer must never donate it.

    Args:
      specs: of the sampler's weights.
      shardings: of these.
      moves: bool per parameter: the trainer may change it.
    """

    def __init__(self, specs: Any, shardings: Any, moves: Any):
        (moving, self._still), (lie, self._lie) = (parameters.split(tree, moves) for tree in (specs, shardings))
        self._moves = moves
        self._copy = jax.jit(partial(parameters.cast, specs=moving), out_shardings=lie)
        self._given: list[jax.Array] | None = None
        self._taken: Any = None

    def take(self, params: Any) -> Any:
        """A tree of ``specs``. Only what moves is read again, as long as the rest are the very arrays of the call before."""
        moving, still = parameters.split(params, self._moves)
        given = jax.tree.leaves(still)
        if self._given is None or any(a is not b for a, b in zip(given, self._given, strict=True)):
            self._given = self._taken = None  # or there would be two copies while the new one is made
            self._taken = self._take_still(still)
            self._given = given
        return parameters.merge(self._copy(moving), self._taken)

    def _take_still(self, still: Any) -> Any:
        """Each array itself if it is as it is wanted, else a copy that is."""
        as_they_are = jax.tree.map(fits, still, self._still, self._lie)
        shared, rest = parameters.split(still, as_they_are)
        _, specs = parameters.split(self._still, as_they_are)
        _, lie = parameters.split(self._lie, as_they_are)
        return parameters.merge(shared, jax.jit(partial(parameters.cast, specs=specs), out_shardings=lie)(rest))
