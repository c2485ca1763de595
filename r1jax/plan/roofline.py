"""How long the phases of a round take: the longer of arithmetic and memory, and the communication that neither hides.

Nothing here asks a compiler, whose own estimate counts the body of a loop once (see README.md). Peaks are the chip's, the
shares of them that a run reaches are ``config.plan.Efficiency``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass, field

import jax.numpy as jnp

from r1jax import config
from r1jax.config.plan import Efficiency
from r1jax.models import decoder
from r1jax.plan import flops
from r1jax.plan.topology import Topology

HOST = 25e9
"""Bytes/s between a device and its host's memory: PCIe 4.0 as it is reached (assumed for all)."""
ACTIVATION = 2
"""Bytes of a number that travels between devices."""


@dataclass(frozen=True)
class Layout:
    """How a model lies over devices."""

    fsdp: int = 1
    expert: int = 1
    tensor: int = 1
    context: int = 1
    data: int = 1
    replica: int = 0
    """Devices that share one copy of the sampler's weights, all of them split evenly: an engine of its own. 0 is this program's
    decode layout, in which only experts, feed-forward and vocabulary are split."""

    @property
    def devices(self) -> int:
        return self.data * self.fsdp * self.expert * self.tensor * self.context


@dataclass(frozen=True)
class Load:
    """What a round does: one rollout and the updates that it is good for."""

    answers: int
    """Of a round."""
    updates: int
    prompt: float
    """Tokens, the mean."""
    answer: float
    """Tokens, the mean."""
    longest: float
    """Tokens of the longest answer."""
    slots: int
    computed: float = 0.0
    """Tokens that an update computes, padding too; 0 is as many as there are."""
    micro_batches: int = 1
    passes: int = 0
    """Forward passes over the round's tokens before the updates: of pi_old, of the reference, of a critic, of a teacher (which
    counts as the policy's size)."""
    critic: bool = False
    """A second model of the policy's size is updated too."""
    group: int = 1
    """Answers that share a prompt."""
    recompute: bool = False
    """The backward pass makes the forward pass again."""
    fp8: bool = False
    """Products of the layers are in FP8."""
    hosted: tuple[float, float] = (0.0, 0.0)
    """Bytes of one parameter that come from the host's memory, and go back: for a scoring pass, for an update."""
    workers: int = 2
    """Reward processes on each host."""
    weight_bytes: float = 0.0
    """Of one number of the sampler's kernels; 0 is the model's type."""
    samples: bool = True
    """Whether answers are sampled and scored; else they are rows that are there."""

    @property
    def tokens(self) -> float:
        """Of a round's sequences."""
        return self.answers * self.answer + self.answers / self.group * self.prompt


@dataclass(frozen=True)
class Phase:
    """Seconds of a phase, and what a device does in it."""

    flops: float = 0.0
    memory: float = 0.0
    """Bytes of its memory that are read and written."""
    node: float = 0.0
    """Bytes that it sends within its node or slice."""
    network: float = 0.0
    """Bytes that it sends beyond."""
    arithmetic_s: float = 0.0
    memory_s: float = 0.0
    link_s: float = 0.0
    """Of communication, hidden or not."""
    other_s: float = 0.0
    exposed_s: float = 0.0
    """Of communication, what nothing hides."""

    @property
    def seconds(self) -> float:
        return max(self.arithmetic_s, self.memory_s) + self.exposed_s + self.other_s

    @property
    def without_overlap(self) -> float:
        return self.seconds - self.exposed_s + self.link_s


@dataclass(frozen=True)
class Round:
    phases: dict[str, Phase] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return sum(p.seconds for p in self.phases.values())

    @property
    def without_overlap(self) -> float:
        return sum(p.without_overlap for p in self.phases.values())


def estimate(model: config.Model, topology: Topology, layout: Layout, load: Load, e: Efficiency) -> Round:
    """The phases of a round."""
    m = _Machine(model, topology, layout, load, e)
    if not load.samples:
        return Round({"update": m.update()})
    phases = {"rollout": m.rollout(), "rewards": m.rewards()}
    if load.passes:
        phases["score"] = m.score()
    if load.critic:
        phases["critic"] = m.update()
    return Round(phases | {"update": m.update(), "reshard": m.reshard()})


def sampler_bytes(model: config.Model, layout: Layout, load: Load) -> float:
    """Of a device's weights for the rollout."""
    return _Machine(model, None, layout, load, Efficiency()).sampler_bytes()


def training_rate(model: config.Model, topology: Topology, sequence: int, e: Efficiency, *, fp8: bool = False) -> float:
    """Tokens/s of a device that trains on sequences of so many tokens, with all communication hidden."""
    cost = flops.GRADIENT * flops.forward_flops(model, sequence, flops.causal_pairs(sequence), sequence) / sequence
    if model.mtp_depth:
        cost += flops.GRADIENT * mtp_flops(model, sequence)
    return product_rate(topology, e, fp8) / cost


def product_rate(topology: Topology, e: Efficiency, fp8: bool) -> float:
    """FLOP/s of a device."""
    chip = topology.chip
    gain = min(e.fp8_gain, chip.fp8 / chip.bf16) if fp8 else 1.0
    return topology.of_device(chip.bf16) * e.compute * gain


def mtp_flops(model: config.Model, sequence: int) -> float:
    """Of one token through the multi-token-prediction module, its layer like the last of the trunk."""
    one = dataclasses.replace(model, segments=(dataclasses.replace(model.segments[-1], count=1),), mtp_depth=0)
    merge = 2 * 2 * model.d_model * model.d_model
    return merge + flops.forward_flops(one, sequence, flops.causal_pairs(sequence), sequence) / sequence


@functools.cache
def parameters(model: config.Model) -> tuple[float, float]:
    """(of experts, others), without the embedding where it is no head."""
    experts = others = 0.0
    for path, spec in flops.leaves(decoder.specs(model)):
        if path.startswith("mtp/") or path == "embed/table" and not model.tied:
            continue
        size = math.prod(spec.shape)
        experts, others = (experts + size, others) if "experts" in spec.axes else (experts, others + size)
    return experts, others


@dataclass(frozen=True)
class _Machine:
    model: config.Model
    topology: Topology | None
    layout: Layout
    load: Load
    e: Efficiency

    # -- Phases

    def rollout(self) -> Phase:
        """Prefill once per question, then a step for each token of the longest answer, or for as many as the slots need."""
        load, model, n = self.load, self.model, self.layout.devices
        questions = load.answers / load.group
        prefill = flops.forward_flops(model, int(questions * load.prompt), int(questions * load.prompt**2 / 2), int(questions))
        slots = min(load.slots, load.answers)
        steps = max(load.longest, load.answers * load.answer / slots + load.longest - load.answer)
        seen = load.prompt + load.answer / 2
        decoded = load.answers * load.answer
        work = prefill + decoded * (flops.token_flops(model) + flops.head_flops(model))
        work += decoded * seen * flops.pair_flops(model, absorbed=True)
        cache = decoded * seen * flops.cache_bytes(model) * self._cache_copies() / n
        rows = max(1.0, decoded / steps)  # that go on, on average
        read = steps * self._weights_read(rows) + cache
        node, network = self._decode_sent(decoded)
        return self._phase(work / n, read, node, network, self.e.bandwidth, 0.0, steps * model.n_layers * self.e.layer_seconds)

    def rewards(self) -> Phase:
        """Scored as they come: behind the rollout are those of a slot's worth of answers at the most."""
        last = min(self.load.answers, self.load.slots) / 8
        return Phase(other_s=last * self.e.reward_seconds / (self.load.workers * self.topology.nodes))

    def score(self) -> Phase:
        """Forward passes over the round's rows."""
        work = self._forward() * self.load.passes * self.load.updates
        node, network = (x * self.load.passes * self.load.updates for x in self._train_sent(forward_only=True))
        return self._phase(work, 0.0, node, network, 1.0, self.e.overlap, self._held() * self.load.hosted[0] / HOST)

    def update(self) -> Phase:
        """All updates of the round, with the optimizer's step."""
        turns = flops.GRADIENT + self.load.recompute
        work = self._forward() * turns * self.load.updates
        step = 32 * self._held() * self.load.updates  # moments, master weights and gradients in float32, read and written
        node, network = (x * self.load.updates for x in self._train_sent(forward_only=False))
        phase = self._phase(work, 0.0, node, network, 1.0, self.e.overlap)
        moved = self._held() * self.load.hosted[1] * self.load.updates / HOST
        return dataclasses.replace(phase, memory=step, other_s=step / (self._bandwidth * 0.8) + moved)

    def reshard(self) -> Phase:
        """Weights from the trainer's layout to the sampler's, once a round: what a device receives others send."""
        size = self.sampler_bytes()
        ways = self.layout.devices // self.layout.data
        node, network = self._over(size * (1 - 1 / ways), ways)
        return self._phase(0.0, 2 * size, node, network, 0.8, 0.0)

    # -- What a device does

    def _phase(self, work, memory, node, network, share: float, overlap: float, other: float = 0.0) -> Phase:
        chip, t = self.topology.chip, self.topology
        arithmetic = work / product_rate(t, self.e, self.load.fp8)
        read = memory / (self._bandwidth * share)
        link = (node / t.of_device(chip.link) + network / t.of_device(chip.network)) / self.e.link
        hidden = min(overlap * link, max(arithmetic, read))
        return Phase(work, memory, node, network, arithmetic, read, link, other, link - hidden)

    def _held(self) -> float:
        """Parameters that a device holds in training."""
        return sum(parameters(self.model)) * self.layout.data / self.layout.devices

    @property
    def _bandwidth(self) -> float:
        return self.topology.of_device(self.topology.chip.bandwidth)

    @property
    def _computed(self) -> float:
        """Tokens of an update, of a device that works on them with those beside it: padding too."""
        whole = self.load.computed or self.load.tokens / self.load.updates
        return whole / (self.layout.devices / self.layout.tensor)

    def _forward(self) -> float:
        """FLOPs of a device for a forward pass over an update's rows."""
        length = int(self.load.prompt + self.load.answer)
        each = flops.forward_flops(self.model, length, flops.causal_pairs(length), length) / length
        a = self.model.attention
        if a.kind == "mla":  # a device of a split row makes the keys of the whole row from their latents
            keys = 2 * a.kv_rank * a.n_heads * (a.nope_dim + a.v_dim) * self.model.n_layers
            each += (self.layout.context - 1) * keys
        return each * self._computed / self.layout.tensor

    def _numbers(self) -> float:
        return self.load.weight_bytes or jnp.dtype(self.model.head_dtype).itemsize

    def _split(self) -> tuple[float, float]:
        """Over how many devices the sampler's experts and its other weights are split."""
        if self.layout.replica:
            return self.layout.replica, self.layout.replica
        whole = _attention_share(self.model) if self.model.attention.kind == "mla" else 0.0
        return self.layout.expert * self.layout.tensor, 1 / (whole + (1 - whole) / self.layout.tensor)

    def sampler_bytes(self) -> float:
        experts, others = parameters(self.model)
        by_expert, by_other = self._split()
        return (experts / by_expert + others / by_other) * self._numbers()

    def _weights_read(self, rows: float) -> float:
        """Bytes of weights that a device reads for a step of so many rows of all devices."""
        experts, others = parameters(self.model)
        by_expert, by_other = self._split()
        copies = self.layout.devices / (self.layout.replica or self.layout.expert * self.layout.tensor)
        chosen = 1.0
        if self.model.moe is not None:
            chosen = 1 - (1 - self.model.moe.top_k / self.model.moe.n_experts) ** max(1.0, rows / copies)
        return (experts * chosen / by_expert + others / by_other) * self._numbers()

    def _cache_copies(self) -> float:
        """Of each row, on how many devices it is read: keys of fewer heads than there are devices to split them."""
        a, ways = self.model.attention, self.layout.replica or self.layout.tensor
        if a.kind == "mla":
            return 1.0
        return max(1.0, ways / a.n_kv_heads) if self.layout.replica else (1.0 if a.n_kv_heads % ways == 0 else float(ways))

    # -- What a device sends: (within its node, beyond)

    def _over(self, size: float, group: int) -> tuple[float, float]:
        """``size`` bytes to members of a group of so many devices that lie side by side."""
        inside = min(group, self.topology.per_node)
        beyond = (group - inside) / max(1, group - 1)
        return size * (1 - beyond), size * beyond

    def _group(self, *axes: str) -> int:
        """Devices from the first to the last of a group along these axes, in the mesh's order, the last axis innermost."""
        order = ("data", "fsdp", "expert", "tensor", "context")
        outer = min((order.index(a) for a in axes if getattr(self.layout, a) > 1), default=len(order))
        return math.prod(getattr(self.layout, a) for a in order[outer:])

    def _moe_layers(self) -> int:
        return sum(s.count for s in self.model.segments if s.ff == "moe")

    def _sum(self, *parts: tuple[float, float]) -> tuple[float, float]:
        return sum(p[0] for p in parts), sum(p[1] for p in parts)

    def _exchange(self, tokens: float) -> tuple[float, float]:
        """Tokens of a device to their experts and back."""
        if self.model.moe is None or self.layout.expert == 1:
            return 0.0, 0.0
        size = 2 * tokens * self.model.moe.top_k * self.model.d_model * ACTIVATION * self._moe_layers()
        return self._over(size * (1 - 1 / self.layout.expert), self._group("expert"))

    def _reduce(self, tokens: float, times: float, ways: int, group: int) -> tuple[float, float]:
        """Sums of hidden states over devices that hold parts of the products."""
        if ways == 1:
            return 0.0, 0.0
        size = times * 2 * (ways - 1) / ways * tokens * self.model.d_model * ACTIVATION * self.model.n_layers
        return self._over(size, group)

    def _decode_sent(self, decoded: float) -> tuple[float, float]:
        if replica := self.layout.replica:
            return self._reduce(decoded / (self.layout.devices / replica), 2, replica, replica)
        rows = decoded / self.layout.devices
        times = 1 if self.model.attention.kind == "mla" else 2
        ways = self.layout.tensor
        return self._sum(self._exchange(rows), self._reduce(rows * ways, times, ways, self._group("tensor")))

    def _train_sent(self, forward_only: bool) -> tuple[float, float]:
        """Of an update or a scoring pass."""
        n, tokens = self.layout, self._computed
        passes = 1 if forward_only else 2 + self.load.recompute
        experts, others = (x * ACTIVATION / n.tensor for x in parameters(self.model))
        parts = [tuple(passes * x for x in self._exchange(tokens / n.tensor))]
        parts.append(self._reduce(tokens, 2 * passes, n.tensor, self._group("tensor")))
        turns = self.load.micro_batches * (1 if forward_only else 3)  # gathered forward and backward, gradients scattered
        for size, axes in ((experts / n.expert, ("fsdp", "context")), (others, ("fsdp", "expert", "context"))):
            ways = math.prod(getattr(n, a) for a in axes)
            parts.append(self._over(turns * size * (ways - 1) / ways, self._group(*axes)))
        if not forward_only:
            gradients = 2 * (n.data - 1) / n.data * self._held() * ACTIVATION * self.load.micro_batches
            parts.append(self._over(gradients, n.devices))
        if n.context > 1:
            a = self.model.attention
            numbers = a.kv_rank + a.rope_dim if a.kind == "mla" else 2 * a.n_kv_heads * a.head_dim
            kept = tokens * (n.context - 1) * numbers * ACTIVATION * self.model.n_layers * passes
            parts.append(self._over(kept, self._group("context")))
        return self._sum(*parts)


@functools.cache
def _attention_share(model: config.Model) -> float:
    """Of the weights that are no experts, attention's."""
    leaves = flops.leaves(decoder.specs(model))
    mine = sum(math.prod(s.shape) for path, s in leaves if "/attention/" in path and not path.startswith("mtp/"))
    return mine / parameters(model)[1]


def of_stage(
    stage: config.Stage, model: config.Model, shape: dict[str, int], prompt: float, answer: float, e: Efficiency
) -> tuple[Layout, Load]:
    """Layout and load of a stage with a number for ``micro_batch``.

    Args:
      shape: sizes of the mesh.
    """
    grpo = isinstance(stage, config.GRPO)
    updates = stage.minibatches if grpo else 1
    answers = stage.questions * stage.group * updates if grpo else stage.batch
    group = stage.group if grpo else 1
    cap = stage.max_cap if grpo else stage.sequence_length - prompt
    shared = group if grpo and stage.share_prompts else 1
    filled = answers / updates * (answer + prompt / shared)
    rows = filled / (stage.sequence_length * e.packing)
    turns = max(1, math.ceil(rows / stage.micro_batch))
    passes = 0
    if grpo:
        passes = (stage.old_logprobs == "trainer" and stage.minibatches > 1) + (stage.kl_beta > 0)
        passes += (stage.advantage == "gae") + bool(stage.teacher)
    moments = 2 * (2 * jnp.dtype(stage.optimizer.moments_dtype).itemsize + 4)  # with float32 master weights; there and back
    hosted = 2.0 * ("reference" in stage.offload), float(moments * ("optimizer" in stage.offload))
    weights = {"same": 0.0, "int8": 1.0, "fp8": 1.0}[stage.engine.weights]
    load = Load(
        answers, updates, prompt, min(answer, cap), min(cap, e.longest * answer), stage.engine.slots,
        computed=float(turns * stage.micro_batch * stage.sequence_length), micro_batches=turns, passes=passes, group=group,
        recompute=model.remat in ("layer", "attention", "offload"), fp8=model.matmul_dtype == "fp8",
        hosted=hosted, workers=stage.workers.count, weight_bytes=weights, samples=grpo,
        critic=grpo and stage.advantage == "gae",
    )  # fmt: skip
    return Layout(**shape), load
