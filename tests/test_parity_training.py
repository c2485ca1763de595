"""An update is that of torch: AdamW and its schedule, SFT and every variant of GRPO, on transformers' models in float32."""

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch
import torch_reference
import transformers
from parity import close, mutations, noticed, passes, replaced
from random_models import GQA, MLA, draw, jit

from r1jax import config, sharding
from r1jax.advantages import group_advantages
from r1jax.data.packing import pack_sequences
from r1jax.losses.sums import denominator
from r1jax.train import optimizer
from r1jax.train.update import Trainer

pytestmark = pytest.mark.parity

RNG = np.random.default_rng(4)
SEQUENCES = [RNG.integers(0, 48, n).tolist() for n in (9, 14, 7, 12, 10, 6, 11, 8)]
TRAINED = [np.arange(len(s)) >= p for s, p in zip(SEQUENCES, (1, 5, 3, 4, 6, 2, 5, 4), strict=True)]


def numpy_of(tensors):
    return {name: x.detach().numpy().copy() for name, x in tensors.items()}


# -- AdamW and the schedule

OPTIMIZER = config.Optimizer(lr=0.02, lr_end=0.004, warmup_steps=2, weight_decay=0.3, clip_norm=1.5, b1=0.8, b2=0.9)
STEPS = 6


@functools.cache
def gradient_steps():
    """Parameters, their gradients at each step, and our parameters after each; with gradients of many sizes."""
    names = {"kernel": (3, 4), "bias": (5,), "norm": (2, 4), "embed": (6, 2)}
    before = {n: RNG.normal(size=shape).astype(np.float32) for n, shape in names.items()}
    sizes = (1.0, 0.1, 1e-3, 3.0, 1e-7, 0.5)
    grads = [{n: (size * RNG.normal(size=x.shape)).astype(np.float32) for n, x in before.items()} for size in sizes]
    tx = optimizer.optimizer(OPTIMIZER, STEPS)

    @jit
    def step(params, state, grads):
        norm, factor = optimizer.global_norm(grads, OPTIMIZER.clip_norm)
        updates, state = tx.update(optimizer.scaled(grads, factor), state, params)
        return jax.tree.map(jnp.add, params, updates), state, norm

    params, state, after = before, tx.init(before), []
    for g in grads:
        params, state, norm = step(params, state, g)
        after.append(({n: np.asarray(x) for n, x in params.items()}, float(norm)))
    return before, grads, after


def check_adamw(steps=STEPS, decays=("kernel",), **fields):
    c = replaced(OPTIMIZER, **fields)
    before, grads, after = gradient_steps()
    module = torch.nn.ParameterDict({n: torch.nn.Parameter(torch.tensor(x)) for n, x in before.items()})
    adamw = torch_reference.adamw(module, c, decays=lambda name, _: name in decays)
    schedule = torch_reference.schedule(adamw, c, steps)
    for g, (params, norm) in zip(grads, after, strict=True):
        loss = sum((p * torch.tensor(g[name])).sum() for name, p in module.items())
        assert torch_reference.update(loss, adamw, c) == pytest.approx(norm, rel=1e-6)
        schedule.step()
        close(params, numpy_of(dict(module)), atol=1e-6, rtol=1e-6)


def test_adamw_is_torchs():
    assert {norm > OPTIMIZER.clip_norm for _, norm in gradient_steps()[2]} == {True, False}
    passes(check_adamw)


@mutations(
    {
        "b1": {"b1": 0.9},
        "b2": {"b2": 0.95},
        "eps": {"eps": 1e-6},
        "decay": {"weight_decay": 0.2},
        "decay of everything": {"decays": ("kernel", "bias", "norm", "embed")},
        "decay of the embedding": {"decays": ("kernel", "embed")},
        "decay of nothing": {"decays": ()},
        "clipping": {"clip_norm": 1.6},
        "no clipping": {"clip_norm": 0.0},
        "warm-up": {"warmup_steps": 3},
        "last rate": {"lr_end": 0.003},
        "no cosine": {"lr_end": None},
        "length of the cosine": {"steps": STEPS + 1},
    }
)
def test_another_adamw_is_noticed(change):
    noticed(check_adamw, change)


def check_schedule(ahead=1, **fields):
    """Theirs begins its warm-up at 0, where a step would do nothing, so ours is one ahead in it; and it ends after the last
    step, ours at it."""
    for warmup, steps, lr_end in ((0, 7, 0.0), (3, 9, 0.0), (4, 12, 0.2)):
        c = config.Optimizer(lr=1.0, lr_end=lr_end, warmup_steps=warmup)
        ours = optimizer.schedule(c, steps)
        c = replaced(c, **fields)
        sgd = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        if c.lr_end:
            theirs = transformers.get_cosine_with_min_lr_schedule_with_warmup(sgd, c.warmup_steps, steps - 1, min_lr=c.lr_end)
        else:
            theirs = transformers.get_cosine_schedule_with_warmup(sgd, c.warmup_steps, steps - 1)
        (rate,) = theirs.lr_lambdas
        expected = [rate(i + ahead * (i < c.warmup_steps)) for i in range(steps)]
        np.testing.assert_allclose([float(ours(i)) for i in range(steps)], expected, atol=1e-6)
        assert expected[-1] == pytest.approx(c.lr_end)


def test_the_schedule_is_transformers():
    passes(check_schedule)


@mutations({"warm-up from 0": {"ahead": 0}, "warm-up": {"warmup_steps": 2}, "last rate": {"lr_end": 0.1}})
def test_another_schedule_is_noticed(change):
    noticed(check_schedule, change)


# -- SFT of DeepSeek-V3 with multi-token prediction

SFT = tiny.sft(
    model=MLA,
    steps=4,
    micro_batch=2,
    sequence_length=20,
    # A larger eps, so that rounding in a gradient of almost 0 does not become a step of the size of lr.
    optimizer=config.Optimizer(lr=0.01, lr_end=0.002, warmup_steps=2, weight_decay=0.3, clip_norm=2.0, eps=1e-3),
    mtp_weight=0.3,
    balance_weight=0.5,
    bias_rate=0.0,
)


def sft_weights():
    return draw(MLA, embedding=0.05)  # small, so that a wrong eps shows


@functools.cache
def sft_steps():
    """(metrics, parameters by their names) after each of our updates of one packed batch, whose last micro-batch is empty."""
    batch, count = pack_sequences(SEQUENCES, TRAINED, rows=2, length=20, normalize="token", micro_batches=3)
    assert count == 2 and (batch.segments.max(-1) > 1).any() and (batch.segments == 0).any(-1).any()
    trainer = Trainer(SFT, MLA, sharding.make_mesh(config.Mesh(fsdp=1)))
    state, batch, out = trainer.create(sft_weights()), trainer.put(batch), []
    divisor = denominator("token", answers=len(SEQUENCES), tokens=int(batch.mask.sum()), cap=20)
    for _ in range(SFT.steps):
        state, metrics = trainer.update(state, batch, count, divisor)
        scalars = {k: float(v) for k, v in metrics.items() if not v.ndim}
        out.append((scalars, numpy_of(torch_reference.tensors(state.params, MLA))))
    return out


def check_sft(trained=TRAINED, model=None, **fields):
    stage = replaced(SFT, **fields)
    policy = torch_reference.Policy("DeepseekV3", sft_weights(), replaced(MLA, **model or {}))
    adamw = torch_reference.adamw(policy, stage.optimizer)
    schedule = torch_reference.schedule(adamw, stage.optimizer, stage.steps)
    for metrics, params in sft_steps():
        parts = torch_reference.sft(policy, SEQUENCES, trained, stage)
        norm = torch_reference.update(parts["loss"], adamw, stage.optimizer)
        expected = {"loss": parts["loss"].item(), "grad/norm": norm, "lr": schedule.get_last_lr()[0]}
        expected |= {f"loss/{name}": parts[name].item() for name in ("nll", "mtp", "balance")}
        assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-4)
        schedule.step()
        close(params, numpy_of(policy.state_dict()), atol=5e-6)


def test_sft_is_that_of_transformers_and_torch():
    assert sft_steps()[0][0]["grad/norm"] > SFT.optimizer.clip_norm
    passes(check_sft)


@mutations(
    {
        "rate": {"optimizer__lr": 0.011},
        "b2": {"optimizer__b2": 0.96},
        "eps": {"optimizer__eps": 1e-8},
        "decay": {"optimizer__weight_decay": 0.0},
        "clipping": {"optimizer__clip_norm": 0.0},
        "schedule": {"optimizer__lr_end": None},
        "weight of the tokens after next": {"mtp_weight": 0.1},
        "weight of the balance": {"balance_weight": 0.4},
        "prompts are trained on": {"trained": [np.arange(len(s)) > 0 for s in SEQUENCES]},
        "eps of the norms": {"model": {"norm_eps": 1e-5}},
        "halves instead of neighbours": {"model": {"rope__interleaved": False}},
        "scale of the experts": {"model": {"moe__scale": 1.0}},
    }
)
def test_another_sft_is_noticed(change):
    noticed(check_sft, change)


# -- Every variant of GRPO on a tied Qwen3

QWEN3 = dataclasses.replace(
    GQA,
    segments=(config.Segment("dense", 1),),
    attention=config.GQA(n_heads=4, n_kv_heads=2, head_dim=8, qk_norm=True),
    moe=None,
    tied=True,
)
GROUP = 4
PROMPTS = [RNG.integers(0, 48, n).tolist() for n in (5, 3)]
ANSWERS = [PROMPTS[i // GROUP] + RNG.integers(0, 48, n).tolist() for i, n in enumerate((8, 2, 5, 7, 1, 6, 8, 3))]
SAMPLED = [np.arange(len(s)) >= len(PROMPTS[i // GROUP]) for i, s in enumerate(ANSWERS)]
REWARDS = np.array([1, 0, 0.5, 0, 0, 1, 1, 0.25], np.float32)
VARIANTS = {
    "R1": {"clip_high": 10.0, "kl_beta": 0.5, "sampling__temperature": 0.7},
    "DAPO": {"normalize": "token", "clip_high": 0.28, "importance_cap": 1.1, "sampling__temperature": 1.3},
    "Dr. GRPO": {"normalize": "constant", "advantage_std": False},
    "GSPO": {
        "ratio_level": "sequence",
        "clip_low": 0.1,
        "clip_high": 0.15,
        "kl_beta": 0.2,
        "importance_cap": 1.2,
        "sampling__temperature": 0.8,
    },
}


def grpo_stage(variant):
    stage = tiny.grpo(
        model=QWEN3,
        micro_batch=1,
        sequence_length=24,
        kl_beta=0.0,
        sampling=config.Sampling(max_new_tokens=8),
        engine=config.Engine(max_prompt_tokens=8),
        optimizer=dataclasses.replace(SFT.optimizer, clip_norm=0.1, warmup_steps=0, lr_end=None),
    )
    return replaced(stage, **VARIANTS[variant])


@functools.cache
def thoughts(temperature):
    """What pi_old, the sampler and the reference thought of each token of each sequence: float64[n], near the policy."""
    policy = torch_reference.Policy("Qwen3", draw(QWEN3), QWEN3)
    everything = [np.arange(len(s)) > 0 for s in ANSWERS]
    base = torch_reference.logprobs(policy, ANSWERS, everything, temperature)
    rng = np.random.default_rng(0)

    def near(x, spread):
        return [v + spread * (rng.normal(size=v.shape) + rng.normal()) for v in x]

    old = near([np.append(0.0, x.detach()) for x in base], 0.25)
    return old, near(old, 0.2), near(old, 0.4)


@functools.cache
def grpo_step(variant):
    """(metrics, parameters, clipped gradients) by their names, of our first update of answers that share their prompts."""
    trainer, batch, count, divisor = grpo_batch(variant)
    state, metrics = trainer.update(trainer.create(draw(QWEN3)), trainer.put(batch), count, divisor)
    grads = jax.tree.map(lambda moment: moment / (1 - trainer.stage.optimizer.b1), state.opt_state[0].mu)
    by_name = (numpy_of(torch_reference.tensors(x, QWEN3)) for x in (state.params, grads))
    return {k: float(v) for k, v in metrics.items() if not v.ndim}, *by_name


def pack(stage, logprobs):
    """Answers with per-token numbers, laid out as in training: (PackedBatch, count)."""
    return pack_sequences(
        ANSWERS,
        SAMPLED,
        rows=stage.micro_batch,
        length=stage.sequence_length,
        advantages=group_advantages(REWARDS, GROUP, std=stage.advantage_std),
        sampler_logprobs=logprobs,
        normalize=stage.normalize,
        group=GROUP,
        prompt_length=[len(PROMPTS[i // GROUP]) for i in range(len(ANSWERS))],
    )


def grpo_batch(variant):
    """What ``Trainer.update`` takes: (trainer, packed batch, count, denominator)."""
    stage = grpo_stage(variant)
    old, sampler, reference = thoughts(stage.sampling.temperature)
    batch, count = pack(stage, sampler)
    batch = batch.replace(old_logprobs=pack(stage, old)[0].sampler_logprobs)
    if stage.kl_beta:
        batch = batch.replace(ref_logprobs=pack(stage, reference)[0].sampler_logprobs)
    trainer = Trainer(stage, QWEN3, sharding.make_mesh(config.Mesh(fsdp=1)))
    divisor = denominator(stage.normalize, answers=len(ANSWERS), tokens=int(batch.mask.sum()), cap=stage.max_cap)
    return trainer, batch, count, divisor


def check_grpo(variant, **fields):
    stage = grpo_stage(variant)
    old, sampler, reference = thoughts(stage.sampling.temperature)
    stage = replaced(stage, **fields)
    policy = torch_reference.Policy("Qwen3", draw(QWEN3), QWEN3)
    adamw = torch_reference.adamw(policy, stage.optimizer)
    advantages = torch_reference.group_advantages(torch.tensor(REWARDS), GROUP, std=stage.advantage_std)
    logprobs = torch_reference.logprobs(policy, ANSWERS, SAMPLED, stage.sampling.temperature)
    answers = [
        torch_reference.Answer(lp, *(torch.tensor(x[t]) for x in (o, r, s)), advantage)
        for lp, o, r, s, t, advantage in zip(logprobs, old, reference, sampler, SAMPLED, advantages.tolist(), strict=True)
    ]
    names = ("normalize", "ratio_level", "clip_low", "clip_high", "kl_beta", "importance_cap")
    loss = torch_reference.grpo(answers, cap=stage.max_cap, **{name: getattr(stage, name) for name in names})
    norm = torch_reference.update(loss, adamw, stage.optimizer)
    metrics, params, grads = grpo_step(variant)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-4, abs=1e-6)
    assert metrics["grad/norm"] == pytest.approx(norm, rel=1e-4)
    close({n: grads[n] for n, _ in policy.named_parameters()}, {n: p.grad for n, p in policy.named_parameters()}, atol=1e-6)
    close(params, numpy_of(policy.state_dict()), atol=5e-6)


checks_of_grpo = {variant: partial(check_grpo, variant) for variant in VARIANTS}


@pytest.mark.parametrize("variant", VARIANTS)
def test_grpo_is_that_of_transformers_and_torch(variant):
    metrics, _, _ = grpo_step(variant)
    assert metrics["grad/norm"] > 0.1 and metrics["clip/low"] > 0
    assert (metrics["clip/high"] > 0) == (grpo_stage(variant).clip_high < 10)
    passes(checks_of_grpo[variant])


@pytest.mark.parametrize(
    ("variant", "field", "value"),
    [
        ("R1", "clip_low", 0.19),
        ("R1", "clip_high", 0.2),
        ("R1", "kl_beta", 0.49),
        ("R1", "kl_beta", 0.0),
        ("R1", "normalize", "token"),
        ("R1", "advantage_std", False),
        ("R1", "sampling__temperature", 1.0),
        ("R1", "optimizer__clip_norm", 0.0),
        ("DAPO", "clip_high", 0.2),
        ("DAPO", "importance_cap", 0.0),
        ("DAPO", "importance_cap", 1.15),
        ("DAPO", "normalize", "sequence"),
        ("DAPO", "sampling__temperature", 1.0),
        ("Dr. GRPO", "normalize", "token"),
        ("Dr. GRPO", "sampling__max_new_tokens", 7),
        ("Dr. GRPO", "advantage_std", True),
        ("GSPO", "ratio_level", "token"),
        ("GSPO", "clip_low", 0.11),
        ("GSPO", "clip_high", 0.14),
        ("GSPO", "normalize", "token"),
    ],
)
def test_another_grpo_is_noticed(variant, field, value):
    noticed(checks_of_grpo[variant], {field: value})


@functools.cache
def trainer_logprobs():
    """float32[|o|] of each answer."""
    trainer, batch, count, _ = grpo_batch("R1")
    found = np.asarray(trainer.logprobs(draw(QWEN3), trainer.put(batch), count))
    owner, _ = pack(trainer.stage, [np.full(len(s), i) for i, s in enumerate(ANSWERS)])
    return [found[batch.mask & (owner.sampler_logprobs == i)] for i in range(len(ANSWERS))]


def check_logprobs(temperature=0.7):
    policy = torch_reference.Policy("Qwen3", draw(QWEN3), QWEN3)
    expected = torch_reference.logprobs(policy, ANSWERS, SAMPLED, temperature)
    for found, theirs in zip(trainer_logprobs(), expected, strict=True):
        np.testing.assert_allclose(found, theirs.detach(), atol=1e-4)


def test_the_trainers_logprobs_are_those_of_transformers():
    passes(check_logprobs)


def test_another_temperature_is_noticed():
    noticed(check_logprobs, {"temperature": 1.0})
