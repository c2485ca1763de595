"""How many devices lie along each axis of the mesh."""

from __future__ import annotations

from dataclasses import dataclass

from r1jax.config.base import ConfigError


@dataclass(frozen=True)
class Mesh:
    """Sizes of the mesh axes; 1 leaves an axis out, 0 gives it the devices that are left.

    The default puts every device that was found on ``fsdp``.
    """

    data: int = 1
    """Replicas of the weights; each takes a part of the batch."""
    fsdp: int = 0
    """Weights, gradients and moments are split here, and the batch too. The sampler's weights are not: each token reads them
    all."""
    expert: int = 1
    """Experts are split here, and tokens travel to them; all else is split as by ``fsdp``."""
    tensor: int = 1
    """Heads, feed-forward channels and vocabulary are split here."""
    context: int = 1
    """Positions of long sequences are split here: keys, or the latent that they are made from, are gathered, and scores stay
    split. Weights, gradients and moments are split as by ``fsdp``."""
    auto: bool = False
    """Chooses all five sizes for the devices found, and says why: see ``plan.auto_mesh``. Where nothing is trained it is the
    default."""

    def __post_init__(self):
        sizes = (self.data, self.fsdp, self.expert, self.tensor, self.context)
        if self.auto and sizes != (1, 0, 1, 1, 1):
            raise ConfigError(
                f"mesh.auto chooses every size, and (data, fsdp, expert, tensor, context) are set to {sizes}; "
                "leave them out, or auto"
            )
        if any(s < 0 for s in sizes) or sizes.count(0) > 1:
            raise ConfigError(
                f"mesh sizes (data, fsdp, expert, tensor, context) are {sizes}; "
                "each is >= 1, and one may be 0 to take what is left"
            )
