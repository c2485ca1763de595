"""The decoder: one function, however it is called."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from random_models import GQA, MLA, draw, jit

from r1jax import config
from r1jax import params as parameters
from r1jax.config.model import CONFIG_671B
from r1jax.models import cache as caches
from r1jax.models import decoder, logprobs
from r1jax.nn import chunked_attention, mla, rope
from r1jax.nn.attention import Packed
from r1jax.nn.matmul import FEW, Turned, project
from r1jax.plan import activations
from r1jax.train import objectives
from r1jax.types import PackedBatch

close = partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)
forward = jit(decoder.forward, static_argnames=("model", "absorbed", "keep"))
ROWS, LENGTH = 3, 12
MODELS = pytest.mark.parametrize("model", [GQA, MLA], ids=["gqa", "mla"])
TOKENS = np.random.default_rng(1).integers(0, GQA.vocab_size, (ROWS, LENGTH)).astype(np.int32)
POSITIONS = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), TOKENS.shape)


@pytest.fixture(scope="module")
def params():
    return {model: draw(model) for model in (GQA, MLA)}


@MODELS
def test_decoding_from_a_cache_is_the_forward_pass(params, model):
    """Prompts of three lengths in one right-padded prefill, then one token at a time with each row at its own position."""
    expected, aux, _ = forward(params[model], TOKENS, POSITIONS, np.ones_like(TOKENS), model=model)
    prompt, width = np.array([4, 7, 2]), 7
    seen = np.arange(width) < prompt[:, None]
    padded = np.where(seen, TOKENS[:, :width], 41)  # the padding is a token like any other
    hidden, _, fresh = forward(params[model], padded, POSITIONS[:, :width], seen.astype(np.int32), model=model, keep=True)
    close(hidden[seen], expected[:, :width][seen])
    # blocks of 5, 4 and 3 positions, in which something else stood
    cache = jax.tree.map(lambda x: x + jnp.nan, caches.create(model, ROWS, 5))
    for more in (4, 3):
        cache = caches.grow(cache, jax.tree.map(lambda x: x + jnp.nan, caches.create(model, ROWS, more)))
    cache = caches.place(cache, fresh, model, jnp.arange(ROWS), jnp.ones(ROWS, bool))
    for step in range(5):
        at = (prompt + step)[:, None].astype(np.int32)
        newest = np.take_along_axis(TOKENS, at, axis=1)
        hidden, now, cache = forward(params[model], newest, at, np.ones_like(at), model=model, cache=cache)
        close(hidden[:, 0], np.take_along_axis(np.asarray(expected), at[..., None], axis=1)[:, 0])
        chosen = np.take_along_axis(np.asarray(aux.routes[1][0]), at[..., None], axis=1)
        np.testing.assert_array_equal(np.sort(now.routes[1][0]), np.sort(chosen))


@MODELS
def test_several_tokens_at_once_see_the_cache_and_each_other(params, model):
    """As many as there are in a step that verifies drafts; two of the blocks are written by one call."""
    expected, _, _ = forward(params[model], TOKENS, POSITIONS, np.ones_like(TOKENS), model=model)
    _, _, fresh = forward(params[model], TOKENS, POSITIONS, np.ones_like(TOKENS), model=model, keep=True)
    cache = caches.grow(caches.create(model, ROWS, 5), caches.create(model, ROWS, 7))
    cache = caches.place(cache, fresh, model, jnp.arange(ROWS), jnp.ones(ROWS, bool))
    at = np.array([3, 4, 6])[:, None] + np.arange(3)  # rewritten with what stands there, but for what comes after
    newest = np.take_along_axis(TOKENS, at, axis=1)
    hidden, _, _ = forward(params[model], newest, at.astype(np.int32), np.ones_like(newest), model=model, cache=cache)
    close(hidden, np.take_along_axis(np.asarray(expected), at[..., None], axis=1))


@MODELS
@pytest.mark.parametrize("platform", ["cpu", "tpu"])  # row by row, and all at once
def test_a_slot_that_begins_anew_holds_its_question_and_nothing_else(model, platform, monkeypatch):
    monkeypatch.setattr(caches, "platform", lambda: platform)
    rng = np.random.default_rng(0)
    fresh = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), caches.create(model, 2, 6))
    old = caches.grow(caches.create(model, 3, 4), caches.create(model, 3, 5))
    old = jax.tree.map(lambda x: x + jnp.nan, old)
    new = caches.place(old, fresh, model, jnp.array([1, 0, 1]), jnp.array([True, False, True]))
    assert caches.lengths(new, model) == [4, 5]
    axes = {True: (1,), False: (3, 2)}[model is MLA]
    for layer, held in zip(new, fresh, strict=True):
        for blocks, x, axis in zip(zip(*layer, strict=True), held[0], axes, strict=True):
            whole = np.concatenate(blocks, axis)
            begun = np.take(whole, range(6), axis)
            np.testing.assert_array_equal(begun[[0, 2]], np.asarray(x)[[1, 1]])
            assert not np.take(whole, range(6, 9), axis)[[0, 2]].any() and np.isnan(whole[1]).all()


def test_both_paths_of_latent_attention_agree_in_value_and_gradient(params):
    layer = jax.tree.map(lambda x: x[0], params[MLA]["segments"][0]["attention"])
    x = jax.random.normal(jax.random.key(0), (2, 5, MLA.d_model))
    positions = jnp.broadcast_to(jnp.arange(5), (2, 5))
    packed = Packed(jnp.ones((2, 5), jnp.int32), None)
    angles = rope.angles(positions, MLA.attention.rope_dim, MLA.rope)
    weights = jax.random.normal(jax.random.key(1), x.shape)

    @partial(jit, static_argnums=2)
    @partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def run(layer, x, absorbed):
        out, _ = mla.attend(layer, x, angles, packed=packed, model=MLA, absorbed=absorbed)
        return (out * weights).sum(), out

    (_, expanded), expanded_grads = run(layer, x, False)
    (_, absorbed), absorbed_grads = run(layer, x, True)
    close(absorbed, expanded)
    jax.tree.map(close, absorbed_grads, expanded_grads)
    assert all(g.any() for g in jax.tree.leaves(expanded_grads))


@MODELS
def test_packed_is_unpacked(params, model):
    """Row 0 holds two sequences and padding; rows 1 and 2 hold one of them each."""
    a, b = slice(0, 5), slice(5, 9)
    tokens, segments, positions = TOKENS.copy(), np.zeros_like(TOKENS), np.zeros_like(TOKENS)
    segments[0, a], segments[0, b], segments[1, :5], segments[2, :4] = 1, 2, 1, 7
    positions[0, a], positions[0, b], positions[1, :5], positions[2, :4] = range(5), range(4), range(5), range(4)
    tokens[1, :5], tokens[2, :4] = tokens[0, a], tokens[0, b]
    together = np.where(np.arange(ROWS)[:, None] == 0, segments, 0)
    hidden, packed, _ = forward(params[model], tokens, positions, together, model=model)
    apart, separate, _ = forward(params[model], tokens, positions, segments - together, model=model)
    close(hidden[0, a], apart[1, :5])
    close(hidden[0, b], apart[2, :4])
    np.testing.assert_array_equal(packed.load[1], separate.load[1])
    assert float(packed.load[1].sum()) == 9 * model.moe.top_k
    assert packed.load[0] is None and packed.routes[0] is None
    close(packed.balance, separate.balance)

    targets = jnp.roll(tokens, -1, axis=1)
    values = logprobs.token_logprobs(jnp.concatenate([hidden[:1], apart[1:]]), decoder.head_kernel(params[model]), targets)[0]
    close(values[0, 0:4], values[1, 0:4])
    close(values[0, 5:8], values[2, 0:3])


def test_replayed_routes_give_the_same_output_whatever_the_bias_would_choose(params):
    ones = np.ones_like(TOKENS)
    expected, aux, _ = forward(params[MLA], TOKENS, POSITIONS, ones, model=MLA)
    dense, sparse = params[MLA]["segments"]
    other = {**sparse, "ff": {**sparse["ff"], "router_bias": -sparse["ff"]["router_bias"] * 9}}
    moved = {**params[MLA], "segments": (dense, other)}
    changed, chosen, _ = forward(moved, TOKENS, POSITIONS, ones, model=MLA)
    assert (np.asarray(chosen.routes[1]) != np.asarray(aux.routes[1])).any() and abs(changed - expected).max() > 0.1
    replayed, again, _ = forward(moved, TOKENS, POSITIONS, ones, model=MLA, routes=aux.routes)
    close(replayed, expected)
    np.testing.assert_array_equal(again.routes[1], aux.routes[1])


def test_the_671b_model_has_its_parameters():
    specs = decoder.specs(CONFIG_671B)
    module = specs.pop("mtp")
    assert parameters.count(specs) == 671_026_419_200  # arXiv 2412.19437, section 4.2: 671B
    # The released module without its copies of embedding and head.
    assert parameters.count(module) == 11_610_068_224
    shapes = jax.tree.leaves(parameters.abstract(specs))
    assert sum(s.size for s in shapes) == 671_026_419_200
    biases = 58 * 256
    assert sum(s.size for s in shapes if s.dtype == jnp.bfloat16) == 671_026_419_200 - biases
    assert caches.per_token(CONFIG_671B) == 61 * (512 + 64) * 2  # bfloat16


@pytest.mark.parametrize("kernel", ["reference", "chunked"])
def test_recomputing_leaves_the_gradients_and_keeps_less(kernel, monkeypatch):
    monkeypatch.setattr(chunked_attention, "BLOCK", LENGTH // 3)
    model = dataclasses.replace(MLA, segments=(config.Segment("moe", 2),), mtp_depth=0, attention_kernel=kernel)
    params = draw(model)

    def loss(remat):
        def of(params):
            ones = np.ones_like(TOKENS)
            its = dataclasses.replace(model, remat=remat)
            hidden, aux, _ = decoder.forward(params, TOKENS, POSITIONS, ones, model=its)
            return jnp.square(hidden + 0.5).sum() + aux.balance

        return of

    def kept(remat):
        return activations.kept_bytes(lambda params: jax.vjp(loss(remat), params)[1], params)

    expected = jit(jax.grad(loss("none")))(params)
    policies = ("none", "dots", "attention", "layer", "offload")
    for remat in policies[1:]:
        found = jit(jax.grad(loss(remat)))(params)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), found, expected)
    sizes = [kept(remat) for remat in policies]
    assert all(more > less for more, less in zip(sizes, sizes[1:], strict=False)), sizes
    # of 2 layers: their inputs, and beside these the attention's output, and the log-sum-exp of each head in blocks
    assert sizes[3] - sizes[4] == 2 * TOKENS.size * model.d_model * 4
    held = model.attention.v_dim if kernel == "reference" else model.attention.v_dim + 1
    assert sizes[2] - sizes[3] == 2 * TOKENS.size * model.attention.n_heads * held * 4


@pytest.mark.parametrize(("contract", "tail"), [(1, (4, 3)), (2, (6,))])
def test_a_product_and_its_gradients(contract, tail):
    rng = np.random.default_rng(0)
    shapes = [(2, 5, 4, 8), (4, 8)[-contract:] + tail, (2, 5, 4)[: 4 - contract] + tail]
    x, kernel, weights = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)

    @jit
    def run(x, kernel):
        def with_gradients(product):
            return jax.value_and_grad(lambda x, kernel: (product(x, kernel) * weights).sum(), (0, 1))(x, kernel)

        return [
            with_gradients(partial(project, dtype="float32", contract=contract)),
            with_gradients(partial(project, dtype="bfloat16", contract=contract)),
            with_gradients(partial(jnp.tensordot, axes=contract)),
        ]

    exact, rounded, expected = run(x, kernel)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), exact, expected)
    for got, want in zip(rounded[1], expected[1], strict=True):
        assert got.dtype == jnp.float32  # of the parameter, not of the operand
        assert 1e-5 < np.linalg.norm(got - want) / np.linalg.norm(want) < 2**-7


@pytest.mark.parametrize("rows", [1, 2, 3, FEW, FEW + 1])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_turned_kernel_gives_what_the_plain_one_does(rows, dtype):
    rng = np.random.default_rng(rows)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, 1, 3, 20), (3, 20, 4, 9)))
    turned = Turned(jnp.asarray(np.moveaxis(w, (0, 1), (2, 3))).astype(dtype))
    exact = np.tensordot(*(np.asarray(jnp.asarray(a).astype(dtype), np.float64) for a in (x, w)), 2)
    found = jit(partial(project, dtype=dtype, contract=2))(x, turned)
    assert found.shape == (rows, 1, 4, 9) and found.dtype == jnp.float32
    close(found, exact)


def test_few_rows_are_packed_and_not_the_kernel():
    """On a CPU, where the compiler would swap the operands of a product to have its result as it is asked for."""
    rows, kernel = jnp.ones((32, 96)), Turned(jnp.ones((160, 96), jnp.bfloat16))
    program = jit(partial(project, dtype="bfloat16")).lower(rows, kernel).compile().as_text()
    (product,) = re.findall(r"= f32\[(\d+,\d+)\]\S* dot\(", program)
    assert product == "160,32"


def test_bfloat16_products_sum_in_float32_and_multiply_in_bfloat16_in_both_directions():
    # 4097 and 1 + 2^-9 need more digits than bfloat16 has.
    assert float(project(jnp.ones((1, 4097)), jnp.ones((4097, 1)), "bfloat16")[0, 0]) == 4097
    assert float(project(jnp.array([[1.0, 2**-9]]), jnp.ones((2, 1)), "bfloat16")[0, 0]) == 1 + 2**-9
    gradient = jax.grad(lambda x, w: project(x, w, "bfloat16").sum(), (0, 1))
    program = str(jax.make_jaxpr(gradient)(jnp.ones((3, 4)), jnp.ones((4, 5))))
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert len(products) >= 2 and program.count("preferred_element_type=float32") == len(products)
    traced = jax.make_jaxpr(gradient)(jnp.ones((3, 4)), jnp.ones((4, 5))).jaxpr
    assert {v.aval.dtype.name for product in _products(traced) for v in product.invars} == {"bfloat16"}


def _products(jaxpr):
    """Every matrix product in a program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from _products(inner)


@MODELS
def test_float32_is_float32_on_accelerators_too(model):
    """Where nothing is said, a TPU multiplies float32 as bfloat16 and an NVIDIA GPU as TF32."""

    def loss(params, cache, model):
        hidden, aux, _ = decoder.forward(params, TOKENS, POSITIONS, TOKENS, model=model)
        one, _, _ = decoder.forward(params, TOKENS[:, :1], POSITIONS[:, :1], TOKENS[:, :1], model=model, cache=cache)
        values, entropy = logprobs.token_logprobs(hidden, decoder.head_kernel(params), TOKENS, dtype=model.matmul_dtype)
        return values.sum() + entropy.sum() + one.sum() + aux.balance

    def precisions(model):
        weights = parameters.abstract(decoder.specs(model))
        traced = jax.make_jaxpr(partial(jax.grad(loss), model=model))(weights, caches.create(model, ROWS, LENGTH))
        return [product.params["precision"] for product in _products(traced.jaxpr)]

    found = precisions(model)
    assert len(found) > 60 and all(p == (jax.lax.Precision.HIGHEST,) * 2 for p in found)
    quick = precisions(dataclasses.replace(model, matmul_dtype="bfloat16"))
    assert 0 < sum(p is not None for p in quick) < 20  # the router and the gates


@jit
def both(params, tokens, positions, segments, prefix):
    """The trunk's and the prediction module's hidden states."""
    hidden, _, _ = decoder.forward(params, tokens, positions, segments, prefix=prefix, model=MLA)
    return hidden, decoder.mtp(params, hidden, tokens, positions, segments, prefix=prefix, model=MLA)[0]


def ahead(params, tokens, positions, segments):
    return both(params, tokens, positions, segments, np.zeros_like(segments))[1]


def test_answers_that_share_a_prompt_are_as_with_prompts_of_their_own(params):
    """Row 0 holds the prompt's first 3 of 5 tokens once, then two answers with its last 2 before each."""
    prompt, answers = TOKENS[0, :5], (TOKENS[1, :3], TOKENS[2, :2])
    tokens, positions, segments, prefix = (np.zeros_like(TOKENS) for _ in range(4))
    tokens[0] = np.concatenate([prompt, answers[0], prompt[3:], answers[1]])
    positions[0] = [*range(3), *range(3, 8), *range(3, 7)]
    segments[0], prefix[0] = [1] * 3 + [2] * 5 + [3] * 4, [0] * 3 + [1] * 9
    for row, answer in enumerate(answers, 1):
        size = 5 + len(answer)
        tokens[row, :size] = *prompt, *answer
        positions[row, :size], segments[row, :size] = range(size), 1
    for hidden, end in zip(both(params[MLA], tokens, positions, segments, prefix), (0, 1), strict=True):
        close(hidden[0, :8][: 8 - end], hidden[1, : 8 - end])
        close(hidden[0, 8 : 12 - end], hidden[2, 3 : 7 - end])


def test_the_prediction_of_the_token_after_next_sees_one_token_more_than_the_trunk(params):
    segments = np.ones_like(TOKENS)
    before = ahead(params[MLA], TOKENS, POSITIONS, segments)
    changed = TOKENS.copy()
    changed[:, 6] = (changed[:, 6] + 1) % MLA.vocab_size
    moved = abs(ahead(params[MLA], changed, POSITIONS, segments) - before).max((0, 2))
    assert (moved[:5] == 0).all() and (moved[5:] > 1e-3).all()

    # The first half of the merge takes the embedding ahead, the second the trunk: without the second, t = 5 still moves.
    d = MLA.d_model
    blind = {**params[MLA], "mtp": {**params[MLA]["mtp"], "merge": params[MLA]["mtp"]["merge"].at[d:].set(0)}}
    before = ahead(blind, TOKENS, POSITIONS, segments)
    first = TOKENS.copy()
    first[:, 0] = (first[:, 0] + 1) % MLA.vocab_size
    assert abs(ahead(blind, first, POSITIONS, segments) - before)[:, :-1].max() == 0  # the last has no successor
    assert abs(ahead(blind, changed, POSITIONS, segments) - before).max((0, 2))[5] > 1e-3


def test_the_mtp_loss_is_the_cross_entropy_of_the_token_after_next(params):
    """Row 0: sequences of 5 and 4 tokens and padding; answers begin at its third token and its second token."""
    segments = np.zeros((1, LENGTH), np.int32)
    segments[0, :5], segments[0, 5:9] = 1, 2
    positions = np.array([[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 0, 0]], np.int32)
    targets = np.where(np.roll(segments, -1) == segments, np.roll(TOKENS[:1], -1), 0)
    mask = np.zeros((1, LENGTH), bool)
    mask[0, 1:4], mask[0, 5:8] = True, True
    batch = PackedBatch(TOKENS[:1], positions, segments, targets.astype(np.int32), mask, mask.astype(np.float32))

    @jit
    def run(params):
        hidden, _, _ = decoder.forward(params, batch.tokens, positions, segments, model=MLA)

        def loss(params, hidden, stop):
            return objectives.mtp_loss(params, hidden, batch, model=MLA, stop_trunk=stop)[0]

        ahead, _ = decoder.mtp(params, hidden, batch.tokens, positions, segments, model=MLA)
        return ahead, *(jax.value_and_grad(partial(loss, stop=stop), (0, 1))(params, hidden) for stop in (True, False))

    ahead, (value, (module, trunk)), (_, (every, through)) = run(params[MLA])
    values = jax.nn.log_softmax(ahead[0] @ decoder.head_kernel(params[MLA]))
    np.testing.assert_allclose(value, -sum(values[t, TOKENS[0, t + 2]] for t in (0, 1, 2, 5, 6)), rtol=1e-5)

    moves = {parameters.path_name(p): bool(g.any()) for p, g in jax.tree_util.tree_leaves_with_path(module)}
    assert all(moved == name.startswith("mtp/") for name, moved in moves.items() if "router_bias" not in name), moves
    jax.tree.map(close, module["mtp"], every["mtp"])
    assert not trunk.any() and through.any() and every["head"]["kernel"].any() and every["embed"]["table"].any()


def test_rotation_pairs_neighbours_or_halves():
    cos, sin = (f(jnp.array([[[0.3, 1.1]]])) for f in (jnp.cos, jnp.sin))
    x = jnp.array([[[[1.0, 0.0, 0.0, 2.0]]]])
    c, s = np.cos([0.3, 1.1]), np.sin([0.3, 1.1])
    np.testing.assert_allclose(rope.rotate(x, cos, sin, True)[0, 0, 0], [c[0], s[0], -2 * s[1], 2 * c[1]], rtol=1e-6)
    np.testing.assert_allclose(rope.rotate(x, cos, sin, False)[0, 0, 0], [c[0], -2 * s[1], s[0], 2 * c[1]], rtol=1e-6)


def test_angles_follow_the_position():
    cos, sin = rope.angles(jnp.array([[0, 3]]), 4, config.Rope(theta=100.0))
    np.testing.assert_allclose(cos[0], np.cos([[0, 0], [3, 0.3]]), rtol=1e-6)
    np.testing.assert_allclose(sin[0], np.sin([[0, 0], [3, 0.3]]), rtol=1e-6)


def test_logits_of_activations_in_bfloat16_are_not_rounded():
    """They reach 100, where bfloat16's steps are 0.5: a sampler's log-probs would not be the trainer's."""
    rng = np.random.default_rng(5)
    hidden = jnp.asarray(rng.normal(size=(ROWS, 1, GQA.d_model)), jnp.bfloat16)
    table = jnp.asarray(rng.normal(size=(GQA.vocab_size, GQA.d_model)) * 16, jnp.bfloat16)
    exact = np.asarray(hidden, np.float64) @ np.asarray(table, np.float64).T
    model = dataclasses.replace(GQA, dtype="bfloat16", matmul_dtype="bfloat16", tied=True)
    found = decoder.logits({"embed": {"table": table}}, hidden, model)
    assert np.abs(exact).max() > 100 and found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-3)


@pytest.mark.parametrize("model", [GQA, MLA], ids=["gqa", "mla"])
def test_a_cpu_writes_a_token_without_converting_the_cache(model):
    """XLA:CPU writes into a bfloat16 array by widening all of it and narrowing it again."""
    model = dataclasses.replace(model, dtype="bfloat16", matmul_dtype="bfloat16")
    length, spec = 48, parameters.abstract(decoder.read_specs(model))
    cache = jax.eval_shape(lambda: caches.create(model, ROWS, length))
    one = jax.ShapeDtypeStruct((ROWS, 1), jnp.int32)
    step = jax.jit(partial(decoder.forward, model=model), donate_argnames="cache")
    text = step.lower(spec, one, one, one, cache=cache).compile().as_text()
    held = {",".join(map(str, shape)) for shape, _ in caches.shapes(model, ROWS, length)}
    assert all(f"f32[{shape}]" in text and f"bf16[{shape}]" not in text for shape in held)
