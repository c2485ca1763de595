"""The packed losses against torch in float64 on unpacked answers, and the ways of packing and splitting against each other."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_reference
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from parity import mutations, noticed, passes

from r1jax.losses.grpo import grpo_loss
from r1jax.losses.sft import cross_entropy
from r1jax.losses.sums import combine, denominator

pytestmark = pytest.mark.parity

COUNT, LONGEST, CAP = 20, 9, 12
ROWS, LENGTH = 8, 48
NORMALIZE = ("sequence", "token", "constant")
LEVELS = ("token", "sequence")


def pack(answers, normalize, seed=0):
    """[ROWS, LENGTH] arrays with the answers in random rows, each after 0 to 3 prompt tokens; and where each answer lies."""
    rng = np.random.default_rng(seed)
    names = ("logprobs", "old_logprobs", "ref_logprobs", "sampler_logprobs", "advantages", "weights")
    arrays = {name: rng.normal(size=(ROWS, LENGTH)).astype(np.float32) for name in names}  # what is masked is not 0
    arrays["weights"][:] = 0
    arrays["mask"] = np.zeros((ROWS, LENGTH), bool)
    arrays["segments"] = np.zeros((ROWS, LENGTH), np.int32)
    used, segment, places = np.zeros(ROWS, int), np.zeros(ROWS, int), {}
    for i in rng.permutation(len(answers)):
        a, prompt = answers[i], int(rng.integers(0, 4))
        length = len(a.old)
        r = int(rng.choice(np.flatnonzero(used + prompt + length <= LENGTH)))
        segment[r] += 1
        arrays["segments"][r, used[r] : used[r] + prompt + length] = segment[r]
        places[i] = at = (r, slice(used[r] + prompt, used[r] + prompt + length))
        used[r] += prompt + length
        values = (a.logprobs, a.old, a.ref, a.sampler, torch.tensor(a.advantage), torch.tensor(1.0))
        for name, value in zip(names, values, strict=True):
            arrays[name][at] = value.detach().numpy()
        arrays["weights"][at] = 1 / length if normalize == "sequence" else 1
        arrays["mask"][at] = True
    return arrays, places


def eager(**options):
    return jax.value_and_grad(lambda logprobs, others: grpo_loss(logprobs, **others, **options), has_aux=True)


@functools.cache
def compiled(**options):
    return jax.jit(eager(**options))


def loss_and_grad(arrays, options, *, jit=True):
    others = {k: v for k, v in arrays.items() if k != "logprobs"}
    (loss, sums), grad = (compiled if jit else eager)(**options)(arrays["logprobs"], others)
    return loss, sums, np.asarray(grad)


def agree(loss, grad, places, answers, options):
    expected, expected_grads = torch_reference.value_and_grad(answers, cap=CAP, **options)
    assert float(loss) == pytest.approx(expected, rel=2e-5, abs=2e-6), options
    for i, place in places.items():
        np.testing.assert_allclose(grad[place], expected_grads[i], rtol=2e-5, atol=2e-7, err_msg=str(options))


@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("ratio_level", LEVELS)
def test_every_variant_agrees_with_torch(normalize, ratio_level):
    answers = torch_reference.random_answers(COUNT, LONGEST, seed=7, spread=2.0)
    arrays, places = pack(answers, normalize)
    divisor = denominator(normalize, answers=COUNT, tokens=sum(len(a.old) for a in answers), cap=CAP)
    clips = ((0.2, 0.2), (0.2, 0.28), (0.2, 10.0), (10.0, 10.0), (0.0003, 0.0004))
    seen = {"clipped_low": 0.0, "clipped_high": 0.0, "importance_capped": 0.0, "clipped at 11": 0.0}
    for (low, high), beta, cap in itertools.product(clips, (0.0, 0.04), (0.0, 1.2)):
        options = {"ratio_level": ratio_level, "clip_low": low, "clip_high": high, "kl_beta": beta, "importance_cap": cap}
        loss, sums, grad = loss_and_grad(arrays, options, jit=False)
        agree(loss / divisor, grad / divisor, places, answers, options | {"normalize": normalize})
        assert float(loss) == pytest.approx(float(sums["policy"] + sums["kl"]), rel=1e-5, abs=1e-6)
        for key in sums.keys() & seen.keys():
            seen[key] += float(sums[key])
        if high == 10:
            seen["clipped at 11"] += float(sums["clipped_high"])
    assert min(seen.values()) > 0, f"the random answers do not reach every branch: {seen}"


def check_objective(**changes):
    answers = torch_reference.random_answers(COUNT, LONGEST, seed=7, spread=2.0)
    arrays, places = pack(answers, "token")
    divisor = denominator("token", answers=COUNT, tokens=sum(len(a.old) for a in answers), cap=CAP)
    options = {"ratio_level": "token", "clip_low": 0.2, "clip_high": 0.28, "kl_beta": 0.04, "importance_cap": 1.2}
    loss, _, grad = loss_and_grad(arrays, options, jit=False)
    agree(loss / divisor, grad / divisor, places, answers, {**options, "normalize": "token", **changes})


@mutations(
    {
        "mean over answers": {"normalize": "sequence"},
        "mean over the cap": {"normalize": "constant"},
        "ratios of answers": {"ratio_level": "sequence"},
        "low clip": {"clip_low": 0.21},
        "high clip": {"clip_high": 0.2},
        "weight of the KL": {"kl_beta": 0.041},
        "no KL": {"kl_beta": 0.0},
        "cap of the importance": {"importance_cap": 1.25},
        "no importance": {"importance_cap": 0.0},
    }
)
def test_another_objective_is_noticed(change):
    noticed(check_objective, change)


def test_metrics_agree_with_numpy():
    answers = torch_reference.random_answers(COUNT, LONGEST, seed=2)
    arrays, _ = pack(answers, "token")
    _, sums, _ = loss_and_grad(arrays, {"importance_cap": 1.5})
    lp, old, ref, sampler = (
        torch.cat([getattr(a, name).detach() for a in answers]).numpy() for name in ("logprobs", "old", "ref", "sampler")
    )
    positive = np.concatenate([np.full(len(a.old), a.advantage > 0) for a in answers])
    ratio, engine = np.exp(lp - old), np.exp(old - sampler)
    assert {k: float(v) for k, v in sums.items() if k != "policy"} == pytest.approx(
        {
            "tokens": lp.size,
            "ratio": ratio.sum(),
            "clipped_low": ((ratio < 0.8) & ~positive).sum(),
            "clipped_high": ((ratio > 1.2) & positive).sum(),
            "logprob_diff": np.abs(old - sampler).sum(),
            "max/logprob_diff": np.abs(old - sampler).max(),
            "sampler_ratio": engine.sum(),
            "importance_capped": (engine > 1.5).sum(),
            "kl": 0.0,
            "kl_tokens": (np.exp(ref - lp) - (ref - lp) - 1).sum(),
        },
        rel=1e-5,
    )


FULL = {"clip_high": 0.3, "kl_beta": 0.04, "importance_cap": 1.5}


@pytest.mark.parametrize("ratio_level", LEVELS)
def test_packing_micro_batches_jit_and_mesh_change_nothing(ratio_level):
    answers = torch_reference.random_answers(COUNT, LONGEST, seed=3)
    options = FULL | {"ratio_level": ratio_level}
    arrays, places = pack(answers, "sequence")
    loss, sums, grad = loss_and_grad(arrays, options)

    def same(other_loss, other_sums, other_grad):
        np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
        assert {k: float(v) for k, v in other_sums.items()} == pytest.approx({k: float(v) for k, v in sums.items()}, rel=1e-5)
        np.testing.assert_allclose(other_grad, grad, rtol=1e-5, atol=1e-7)

    same(*loss_and_grad(arrays, options, jit=False))

    rows = [loss_and_grad({k: v[i : i + 2] for k, v in arrays.items()}, options) for i in range(0, ROWS, 2)]
    total = rows[0][1]
    for _, s, _ in rows[1:]:
        total = combine(total, s)
    same(sum(x for x, _, _ in rows), total, np.concatenate([g for _, _, g in rows]))

    sharding = NamedSharding(Mesh(np.array(jax.devices()[:ROWS]), ("data",)), PartitionSpec("data"))
    same(*loss_and_grad(jax.device_put(arrays, sharding), options))

    repacked, new_places = pack(answers, "sequence", seed=7)
    assert new_places != places
    new_loss, new_sums, new_grad = loss_and_grad(repacked, options)
    moved = np.zeros_like(grad)
    for i in places:
        moved[places[i]] = new_grad[new_places[i]]
    same(new_loss, new_sums, moved)


def check_cross_entropy(ignored=-100, reduction="mean"):
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(2, 7, 11)), rng.integers(0, 11, (2, 7))
    mask = rng.random((2, 7)) < 0.6
    t = torch.tensor(logits, requires_grad=True)
    labels = torch.tensor(np.where(mask, targets, ignored))
    expected = torch.nn.functional.cross_entropy(t.flatten(0, 1), labels.flatten(), reduction=reduction)
    expected.backward()

    divisor = denominator("token", answers=2, tokens=int(mask.sum()), cap=7)

    def f(x):
        logprobs = jnp.take_along_axis(jax.nn.log_softmax(x), targets[..., None], -1)[..., 0]
        return cross_entropy(logprobs, mask, mask.astype(jnp.float32))[0] / divisor

    loss, grad = jax.value_and_grad(f)(jnp.asarray(logits, jnp.float32))
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(grad, t.grad, rtol=1e-4, atol=1e-6)


def test_cross_entropy_agrees_with_torch_from_logits():
    passes(check_cross_entropy)


@mutations({"the rest is trained on": {"ignored": 0}, "a sum": {"reduction": "sum"}})
def test_another_cross_entropy_is_noticed(change):
    noticed(check_cross_entropy, change)
