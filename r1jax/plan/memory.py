"""Memory per device before anything is loaded.

State and weights are exact: shapes, dtypes and shardings are those of the trainer. What the backward pass keeps is exact too,
for it is read off the traced loss. The rest, what is alive for a moment, is estimated.

Gradients and activations together lay within -5 % and +10 % of what XLA:CPU reports for thirteen small models (dense and MoE,
both attentions, with and without remat, long rows, a large vocabulary, multi-token prediction). Activations in bfloat16 take up
to half more than that on the CPU, which widens them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from rich.table import Table

from r1jax import config, sharding
from r1jax import params as parameters
from r1jax.models import decoder
from r1jax.plan.activations import activations
from r1jax.plan.activations import micro_batch as micro_batch
from r1jax.plan.capacity import available, available_on_host, human
from r1jax.plan.layout import device_bytes, device_count, host_bytes, laid_out, largest_layer
from r1jax.plan.sampling import Sampling, longest_answer, route_bytes
from r1jax.train.critic import Critic
from r1jax.train.update import Trainer

F32 = 4


@dataclass(frozen=True)
class Memory:
    """Bytes on the fullest device. The first four, ``critic`` and ``teacher`` stay through the whole run; a micro-batch then
    needs ``gradients`` and ``activations``, the optimizer's step ``gradients`` and ``layer``, a reference from the host itself
    and ``activations``, a rollout ``cache`` and ``sampling``, never all of them at once; but a rollout beside the updates
    (``beside``) does."""

    weights: int
    moments: int
    """The optimizer's, and float32 master weights where the parameters are held in less."""
    reference: int
    sampler: int
    """The sampler's copy of the weights."""
    gradients: int
    """The sum over micro-batches, in float32, and one micro-batch's where they are not in ``activations``."""
    activations: int
    """What the backward pass of one micro-batch keeps, and its working set."""
    cache: int
    sampling: int
    """Working set of the loop that decodes: logits, the cache once more, and the routes it records."""
    capacity: int | None
    """What is free on the device; None if it does not tell."""
    host_moments: int = 0
    """As ``moments``, in the host's memory (``offload``)."""
    host_reference: int = 0
    layer: int = 0
    """Of ``host_moments`` the most that a step has on the device: a layer's, or an array's that has no layers, old and new."""
    host_capacity: int | None = None
    """What is free on the host for each of its devices; None if it does not tell."""
    beside: bool = False
    """The next rollout runs while the updates do."""
    critic: int = 0
    """PPO's second model: weights, moments, float32 master weights."""
    teacher: int = 0
    """The weights of the model that is distilled from."""
    judges: int = 0
    """The weights of reward models that score its answers."""
    apart: bool = False
    """The sampler has devices of its own (``engine.devices``), which hold its weights, ``cache`` and ``sampling`` alone."""

    @property
    def resident(self) -> int:
        others = self.critic + self.teacher + self.judges + (0 if self.apart else self.sampler)
        return self.weights + self.moments + self.reference + others

    @property
    def need(self) -> int:
        learning = max(
            self.gradients + max(self.activations, self.layer),
            self.host_reference + self.activations if self.host_reference else 0,
        )
        rollout = self.cache + self.sampling
        if self.apart:
            return max(self.resident + learning, self.sampler + rollout)
        return self.resident + (learning + rollout if self.beside else max(learning, rollout))

    @property
    def host_need(self) -> int:
        return self.host_moments + self.host_reference

    @property
    def fits(self) -> bool:
        return (self.capacity is None or self.need <= self.capacity) and self.fits_host

    @property
    def fits_host(self) -> bool:
        return self.host_capacity is None or self.host_need <= self.host_capacity

    @property
    def parts(self) -> dict[str, int]:
        """The rows of the table that are not 0, in the order of a run."""
        rows = {
            "weights": self.weights,
            "optimizer": self.moments,
            "reference": self.reference,
            "critic": self.critic,
            "teacher": self.teacher,
            "reward models": self.judges,
            "sampler's weights": self.sampler,
            "gradients": self.gradients,
            "activations": self.activations,
            "optimizer, a layer": self.layer,
            "reference, scoring": self.host_reference,
            "cache": self.cache,
            "sampling": self.sampling,
        }
        return {name: size for name, size in rows.items() if size}

    @property
    def on_host(self) -> dict[str, int]:
        rows = {"optimizer": self.host_moments, "reference": self.host_reference}
        return {name: size for name, size in rows.items() if size}

    @property
    def largest(self) -> str:
        """The two largest parts."""
        return ", ".join(f"{name} {human(size)}" for name, size in sorted(self.parts.items(), key=lambda part: -part[1])[:2])

    def line(self) -> str:
        """The table on one line."""
        parts, on_host = (
            ", ".join(f"{name} {human(size)}" for name, size in rows.items()) for rows in (self.parts, self.on_host)
        )
        host = f"; on the host {on_host}" if on_host else ""
        return f"memory per device: {human(self.need)} of {human(self.capacity)} at the most ({parts}){host}"

    def table(self, title: str) -> Table:
        table = Table(title=f"{title}: memory per device", title_justify="left")
        table.add_column("")
        table.add_column("bytes", justify="right")
        table.add_column("of capacity", justify="right")
        if self.on_host:
            table.add_column("on the host", justify="right")
        names = list(dict.fromkeys([*self.parts, *self.on_host]))
        for name in names:
            size, held = self.parts.get(name), self.on_host.get(name)
            row = [human(size), self._share(size)] if size else ["", ""]
            table.add_row(name, *row, human(held) if held else "", end_section=name == names[-1])
        on_host = [human(size) for size in (self.host_need, self.host_capacity)] if self.on_host else ["", ""]
        table.add_row("at the most", human(self.need), self._share(self.need), *on_host[: bool(self.on_host)])
        table.add_row("capacity", human(self.capacity), "", *on_host[1:][: bool(self.on_host)])
        return table

    def _share(self, size: int) -> str:
        return f"{size / self.capacity:.1%}" if self.capacity else ""


def table(
    stage: config.Stage,
    model: config.Model,
    mesh: sharding.AnyMesh,
    *,
    capacity: int | None = None,
    host_capacity: int | None = None,
    teacher: config.Model | None = None,
) -> Memory:
    """What a stage needs.

    Args:
      model: the architecture with the stage's compute choices.
      capacity: bytes per device; None asks the devices, and their host.
      host_capacity: bytes per device in the host's memory, if ``capacity`` is given.
      teacher: of a stage that has one its architecture, with the stage's types; None takes the policy's.

    Raises:
      ValueError: batch or model do not divide over the mesh.
    """
    trainer = Trainer(stage, model, mesh)
    state = trainer.abstract()
    critic = None
    if isinstance(stage, config.GRPO) and stage.advantage == "gae":
        critic = Critic(stage, model, mesh).trainer.abstract()
    weights = laid_out(trainer.specs, trainer.param_shardings)
    trainable, _ = parameters.split(weights, trainer.mask)
    samples = isinstance(stage, config.GRPO) or (stage.eval.every > 0 and not isinstance(stage, config.RewardModel))
    sampling = None
    if samples:
        cap, routes = longest_answer(stage), route_bytes(stage, model)
        where = sharding.sampler_mesh(stage.engine, mesh)
        sampling = Sampling.of(model, where, stage.engine, cap, stage.lora, weights, routes)
    # A device's own shapes are traced, in the form that one device takes: choices sorted by expert.
    with sharding.using(sharding.abstract_mesh([1] * len(sharding.AXES), sharding.platform_of(mesh), "one"), {}):
        backward, own = activations(stage, model, mesh, trainer.mask), device_bytes(trainable)
        if mesh.size == 1 and decoder.in_a_row(model):
            # Layer by layer, a micro-batch's gradients come as what the forward pass has kept goes.
            backward, own = max(backward, own), 0
    found = Memory(
        weights=device_bytes(weights),
        moments=device_bytes(state.opt_state) + device_bytes(state.master),
        reference=device_bytes(state.reference),
        sampler=sampling.weights if sampling else 0,
        gradients=own + F32 * device_count(trainable),
        activations=backward,
        cache=sampling.cache if sampling else 0,
        sampling=sampling.working if sampling else 0,
        capacity=capacity if capacity is not None else available(mesh),
        host_moments=sum(host_bytes(s.opt_state) + host_bytes(s.master) for s in (state, critic) if s is not None),
        host_reference=host_bytes(state.reference),
        apart=stage.engine.devices > 0,
        layer=2 * largest_layer(trainer, state, trainable) if "optimizer" in stage.offload else 0,
        host_capacity=host_capacity if capacity is not None else available_on_host(mesh),
        critic=critic and device_bytes(critic.params) + device_bytes(critic.opt_state) + device_bytes(critic.master) or 0,
        teacher=frozen(teacher or model, mesh) if isinstance(stage, config.GRPO) and stage.teacher else 0,
        beside=isinstance(stage, config.GRPO) and stage.one_step_off_policy and mesh.size == 1,
    )
    if capacity is None and found.capacity is not None and sharding.platform_of(mesh) == "cpu":  # it is one memory
        found = dataclasses.replace(found, host_capacity=max(0, found.capacity - found.need))
    return found


def frozen(model: config.Model, mesh: sharding.AnyMesh) -> int:
    """Bytes on the fullest device of a model that only scores, laid out as the trainer's."""
    specs = decoder.specs(model)
    return device_bytes(laid_out(specs, sharding.param_shardings(specs, mesh, sharding.TRAIN)))
