"""Adapters beside frozen weights: the values and gradients of merged ones, on every matrix and every path."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import GQA, MLA, draw, jit

from r1jax import config, lora, sharding
from r1jax import params as parameters
from r1jax.data.packing import pack_sequences
from r1jax.models import decoder, logprobs
from r1jax.nn import moe
from r1jax.train.update import Trainer

close = partial(np.testing.assert_allclose, rtol=1e-4, atol=5e-5)
ALL = config.LoRA(rank=3, alpha=4.5, targets=("",))
MODELS = pytest.mark.parametrize("model", [GQA, MLA], ids=["gqa", "mla"])
ROWS, LENGTH = 2, 7
TOKENS = np.random.default_rng(1).integers(0, GQA.vocab_size, (ROWS, LENGTH)).astype(np.int32)
POSITIONS = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), TOKENS.shape)


def adapters(model, settings=ALL, b=0.2, seed=3):
    """Random ones, in the tree of the moving parameters; ``b`` is the spread of B."""
    specs = lora.adapt(decoder.specs(model), settings)
    moving, _ = parameters.split(specs, lora.moving(specs, settings))
    rng = np.random.default_rng(seed)
    spread = {"normal": 0.3, "zeros": b}
    return parameters.map_specs(lambda s: jnp.asarray(spread[s.init] * rng.standard_normal(s.shape), s.dtype), moving)


def adapted(model, **how):
    return lora.attach(draw(model), adapters(model, **how))


def by_hand(kernel):
    """numpy's float64 product, matrix by matrix, with what stands before and behind the rank flattened."""
    base, a, b = (np.asarray(x, np.float64) for x in (kernel.base, kernel.a, kernel.b))
    kept = a.ndim + b.ndim - base.ndim - 2
    out = np.empty_like(base)
    for i in np.ndindex(*base.shape[:kept]):
        product = a[i].reshape(-1, a.shape[-1]) @ b[i].reshape(b.shape[kept], -1)
        out[i] = base[i] + 4.5 / 3 * product.reshape(base[i].shape)
    return out


def merged(params):
    return jax.tree.map(
        lambda x: jnp.asarray(by_hand(x), x.base.dtype) if lora.is_adapted(x) else x, params, is_leaf=lora.is_adapted
    )


def outputs(params, model, absorbed=None):
    """Log-probs of the next tokens, through every layer, the head, and the module that predicts one token more."""
    ones = jnp.ones_like(TOKENS)
    hidden, aux, _ = decoder.forward(params, TOKENS, POSITIONS, ones, model=model, absorbed=absorbed)
    targets, kernel = jnp.roll(TOKENS, -1, axis=1), decoder.head_kernel(params)
    out = {"next": logprobs.token_logprobs(hidden, kernel, targets)[0], "balance": aux.balance}
    if model.mtp_depth:
        ahead, _ = decoder.mtp(params, hidden, TOKENS, POSITIONS, ones, model=model)
        out["ahead"] = logprobs.token_logprobs(ahead, kernel, targets)[0]
    return out


run = jit(outputs, static_argnames=("model", "absorbed"))


@MODELS
def test_adapters_at_their_beginning_change_no_bit(model):
    expected = run(draw(model), model)
    found = run(adapted(model, b=0.0), model)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert abs(run(adapted(model), model)["next"] - expected["next"]).max() > 0.1


@pytest.mark.parametrize("model, absorbed", [(GQA, None), (MLA, False), (MLA, True)], ids=["gqa", "mla", "absorbed"])
def test_merged_is_unmerged(model, absorbed):
    """With an adapter on every matrix: attention, dense and shared feed-forward, experts, router, head, MTP's merge."""
    params = adapted(model)
    kernels = [parameters.path_name(p) for p, s in jax.tree_util.tree_leaves_with_path(decoder.specs(model)) if s.inputs]
    places = jax.tree_util.tree_leaves_with_path(params, is_leaf=lora.is_adapted)
    assert [parameters.path_name(p) for p, x in places if lora.is_adapted(x)] == kernels
    jax.tree.map(close, run(params, model, absorbed), run(merged(params), model, absorbed))


@MODELS
def test_gradients_follow_from_those_of_merged_weights(model):
    """dA = s dW B^T and dB = s A^T dW, and nothing for what is frozen."""
    params = adapted(model)
    learned, base = adapters(model), draw(model)

    def loss(params):
        weights = jax.random.normal(jax.random.key(0), TOKENS.shape)
        out = outputs(params, model)
        return sum((out[name] * weights).sum() for name in ("next", "ahead") if name in out) + out["balance"]

    found = jit(jax.grad(lambda t: loss(lora.attach(base, t))))(learned)
    whole = jit(jax.grad(loss))(merged(params))

    def check(x, grads, dw):
        if grads is None:
            return
        a, b, dw = (np.asarray(v, np.float64) for v in (x.a, x.b, dw))
        kept = a.ndim + b.ndim - dw.ndim - 2
        for i in np.ndindex(*dw.shape[:kept]):
            left, right = a[i].reshape(-1, 3), b[i].reshape(3, -1)
            flat = dw[i].reshape(len(left), right.shape[1])
            scale = 1e-4 * max(np.abs(dw).max(), 1e-3)
            np.testing.assert_allclose(grads.a[i].reshape(left.shape), 1.5 * flat @ right.T, rtol=1e-3, atol=scale)
            np.testing.assert_allclose(grads.b[i].reshape(right.shape), 1.5 * left.T @ flat, rtol=1e-3, atol=scale)

    jax.tree.map(check, params, found, whole, is_leaf=lambda x: x is None or lora.is_adapted(x))
    assert all(np.abs(g).max() > 1e-3 for g in jax.tree.leaves(found))


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_both_forms_of_the_experts(dtype, tolerance):
    """In bfloat16 too, whose products XLA:CPU runs in some orders of their axes only."""
    model = dataclasses.replace(GQA, matmul_dtype=dtype)
    layer = jax.tree.map(lambda x: x[0], adapted(model)["segments"][1]["ff"])
    x = jnp.asarray(np.random.default_rng(5).standard_normal((2, 9, model.d_model)), jnp.float32)
    weights = np.random.default_rng(6).standard_normal(x.shape)

    def form(experts):
        @jit
        @partial(jax.value_and_grad, has_aux=True)
        def value(learned):
            params = {**layer, **{n: layer[n].replace(a=a, b=b) for n, (a, b) in learned.items()}}
            out = experts(params, x, moe.route(layer, x, model.moe), model)
            return (out * weights).sum(), out

        (_, out), grads = value({n: (layer[n].a, layer[n].b) for n in ("gate", "up", "down")})
        return out, grads

    def near(ours, wanted):
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())

    jax.tree.map(near, form(moe.experts_grouped), form(moe.experts_dense))
    plain = {**layer, **{n: jnp.asarray(by_hand(layer[n]), jnp.float32) for n in ("gate", "up", "down")}}
    near(form(moe.experts_dense)[0], moe.experts_dense(plain, x, moe.route(layer, x, model.moe), model))


def test_merging_is_numpys_product():
    params = adapted(MLA)
    jax.tree.map(
        lambda x: close(lora.merged(x), by_hand(x), atol=1e-6) if lora.is_adapted(x) else None, params, is_leaf=lora.is_adapted
    )
    x = params["segments"][1]["ff"]["gate"]
    assert lora.merged(x, "bfloat16").dtype == jnp.bfloat16 and lora.merged(x.base, "bfloat16").dtype == jnp.bfloat16


def test_adapters_begin_as_peft_s_do():
    """A spread as uniform numbers within 1 / sqrt(in) are, over all inputs of a matrix; B zero."""
    specs = lora.adapt(decoder.specs(MLA), dataclasses.replace(ALL, rank=64))
    drawn = parameters.init(parameters.split(specs, lora.moving(specs, ALL))[0], jax.random.key(0))
    o, gate = drawn["segments"][0]["attention"]["o"], drawn["segments"][1]["ff"]["gate"]
    assert o.a.shape == (1, 4, 6, 64) and o.b.shape == (1, 64, 32)
    assert gate.a.shape == (1, 8, 32, 64) and gate.b.shape == (1, 8, 64, 12)
    for adapter, inputs in ((o, 4 * 6), (gate, 32)):
        assert np.std(adapter.a) == pytest.approx((3 * inputs) ** -0.5, rel=0.05) and not adapter.b.any()


def test_targets_are_paths_of_matrices():
    def matched(*targets):
        lora.check_targets(specs, config.LoRA(rank=1, targets=targets))
        found = lora.adapt(specs, config.LoRA(rank=1, targets=targets))
        places = jax.tree_util.tree_leaves_with_path(found, is_leaf=lambda x: lora.is_adapted(x) or parameters.is_spec(x))
        return {parameters.path_name(p) for p, x in places if lora.is_adapted(x)}

    specs = decoder.specs(MLA)
    assert matched(r"1/ff/shared/") == {f"segments/1/ff/shared/{name}" for name in ("gate", "up", "down")}
    assert matched("attention/q_b$", "head") == {
        "segments/0/attention/q_b", "segments/1/attention/q_b", "mtp/layer/attention/q_b", "head/kernel",
    }  # fmt: skip
    default = matched(*config.LoRA().targets)
    assert "segments/1/ff/gate" in default and "segments/0/attention/kv_a" in default
    assert not any(word in name for name in default for word in ("mtp", "router", "head", "norm", "bias", "embed"))
    with pytest.raises(ValueError, match="'norm' matches no matrix; there are head/kernel, "):
        matched("norm")
    with pytest.raises(config.ConfigError, match="lora.targets: '\\(' is no regular expression"):
        config.LoRA(targets=("(",))


# -- The trainer


def stage(**changes):
    settings = {"init": "somewhere", "lora": ALL, "micro_batch": 8, "sequence_length": 8, "mtp_weight": 0.3}
    settings |= {"optimizer": config.Optimizer(lr=0.05, warmup_steps=0, eps=1e-3), "balance_weight": 0.1}
    return config.SFT(**settings | changes)


def batch():
    rng = np.random.default_rng(2)
    sequences = [rng.integers(0, 48, 8).tolist() for _ in range(8)]
    return pack_sequences(sequences, [[False] * 3 + [True] * 5] * 8, rows=8, length=8)[0]


def updated(mesh):
    """A state after two updates, the base that it was made of, and the metrics of the second."""
    model = dataclasses.replace(MLA, segments=(config.Segment("moe", 1),), mtp_depth=0)
    trainer = Trainer(stage(), model, mesh)
    base = jax.tree.map(jax.device_put, draw(model), lora.off(trainer.param_shardings))
    state = trainer.create(base)
    for _ in range(2):
        state, metrics = trainer.update(state, trainer.put(batch()), 1, 40.0)
    return model, base, state, metrics


@pytest.fixture(scope="module")
def one_device():
    return updated(sharding.make_mesh(config.Mesh(fsdp=1)))


def test_an_update_moves_adapters_alone_and_leaves_the_base_where_it_is(one_device):
    model, base, state, metrics = one_device
    assert all(x is y for x, y in zip(jax.tree.leaves(lora.off(state.params)), jax.tree.leaves(base), strict=True))
    assert not any(x.is_deleted() for x in jax.tree.leaves(base))  # a sampler may hold the same arrays
    learned = [x for x in jax.tree.leaves(state.params, is_leaf=lora.is_adapted) if lora.is_adapted(x)]
    assert len(learned) == sum(s.inputs > 0 for s in jax.tree.leaves(decoder.specs(model)))
    assert all(np.abs(x.b).max() > 1e-3 for x in learned)
    assert float(metrics["update/skipped"]) == 0
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sum(x.size for x in moments) == 2 * sum(x.a.size + x.b.size for x in learned)
    assert state.master is None


def test_a_mesh_of_all_axes_gives_the_numbers_of_one_device(one_device):
    _, _, state, metrics = updated(sharding.make_mesh(config.Mesh(fsdp=2, expert=2, tensor=2)))
    gate = state.params["segments"][0]["ff"]["gate"]
    assert gate.a.sharding.spec == jax.sharding.PartitionSpec(None, ("expert",), ("fsdp", "context"), None)
    assert gate.b.sharding.spec == jax.sharding.PartitionSpec(None, ("expert",), None, ("tensor",))
    for ours, theirs in ((state.params, one_device[2].params), (metrics, one_device[3])):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5), ours, theirs)
