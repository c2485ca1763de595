"""The losses against numbers worked out by hand, and against what must not change them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.losses.grpo import MAX_LOG_RATIO, grpo_loss, k3
from r1jax.losses.sft import cross_entropy
from r1jax.losses.sums import combine, denominator

WIDTH = 8  # every row by hand is filled up to one shape, for which JAX compiles once


def row(*values):
    return jnp.array([values], jnp.float32)


def padded(values, fill, dtype=jnp.float32):
    return jnp.full((1, WIDTH), fill, dtype).at[0, : len(values)].set(jnp.array(values, dtype))


def grpo(ratios, advantages, *, segments=None, mask=None, weights=None, jit=False, **options):
    """Loss, sums and gradient of a row with pi_old = 0.01 and these ratios; without ``mask`` every token is trained on."""
    n = len(ratios)
    old = jnp.full((1, WIDTH), jnp.log(0.01))
    given = {
        "old_logprobs": old,
        "advantages": padded(advantages, 1),
        "mask": padded([1] * n if mask is None else mask, 0, bool),
        "weights": padded([1] * n if weights is None else weights, 0),
        "segments": padded([1] * n if segments is None else segments, 0, jnp.int32),
    }
    f = jax.value_and_grad(lambda lp: grpo_loss(lp, **(given | options)), has_aux=True)
    (loss, sums), grad = (jax.jit(f) if jit else f)(old + jnp.log(padded(ratios, 1)))
    assert not np.asarray(grad)[0, n:].any()
    return float(loss), {k: float(v) for k, v in sums.items()}, np.asarray(grad)[0, :n]


@pytest.mark.parametrize("jit", [False, True])
def test_clipped_objective_by_hand(jit):
    # rho A:                        1.5    -1.5   0.5   -0.5     2.2
    # clip(rho, 0.8, 1.2) A:        1.2    -1.2   0.8   -0.8     2.2
    # the smaller:                  1.2    -1.5   0.5   -0.8     2.2    sum 1.6
    # d/d logprob of it (rho A, or 0 where the clip was taken): 0, -1.5, 0.5, 0, 2.2
    loss, sums, grad = grpo([1.5, 1.5, 0.5, 0.5, 1.1], [1, -1, 1, -1, 2], jit=jit)
    assert loss == pytest.approx(-1.6)
    np.testing.assert_allclose(grad, [0, 1.5, -0.5, 0, -2.2], rtol=1e-5)
    assert sums == pytest.approx({"policy": -1.6, "tokens": 5, "ratio": 5.1, "clipped_low": 1, "clipped_high": 1})


def test_r1s_clip_of_10_by_hand():
    # Bounds 0.8 and 11: 9 passes, 12 counts as 11, and with A < 0 even 12 passes: 9 + 11 - 12 = 8.
    loss, sums, grad = grpo([9, 12, 12], [1, 1, -1], clip_high=10.0)
    assert loss == pytest.approx(-8)
    np.testing.assert_allclose(grad, [-9, 0, 12], rtol=1e-5)
    assert (sums["clipped_low"], sums["clipped_high"]) == (0, 1)
    # clip_low of 10 puts the lower bound at -9, where no ratio is: -0.1 stays, instead of -0.8.
    assert grpo([0.1], [-1], clip_low=10.0)[0] == pytest.approx(0.1)


def test_weights_scale_value_and_gradient_and_mask_counts_tokens():
    # 0.5 * 1.1 * 2 + 0.25 * 1 * -1 = 0.85; the third token is not trained on.
    loss, sums, grad = grpo([1.1, 1, 7], [2, -1, 5], weights=[0.5, 0.25, 9], mask=[1, 1, 0])
    assert loss == pytest.approx(-0.85)
    np.testing.assert_allclose(grad, [-1.1, 0.25, 0], rtol=1e-5)
    assert sums["tokens"] == 2 and sums["ratio"] == pytest.approx(2.1) and sums["clipped_high"] == 0


def test_kl_by_hand():
    # pi_ref / pi = 0.5: k3 = 0.5 + log 2 - 1 = 0.193147, d k3 / d logprob = 1 - 0.5 = 0.5
    # pi_ref / pi = 2:   k3 = 2 - log 2 - 1   = 0.306853, d k3 / d logprob = 1 - 2 = -1
    # Each ratio is 1 and A = 1, so the policy part is -2 and its gradient -1; weights 1 and 0.5; beta 0.1.
    ref = jnp.log(0.01) + jnp.log(padded([0.5, 2], 1))
    loss, sums, grad = grpo([1, 1], [1, 1], weights=[1, 0.5], kl_beta=0.1, ref_logprobs=ref)
    assert sums["kl"] == pytest.approx(0.1 * (0.193147 + 0.5 * 0.306853), rel=1e-5)
    assert sums["policy"] == pytest.approx(-1.5)
    assert loss == pytest.approx(sums["policy"] + sums["kl"])
    assert sums["kl_tokens"] == pytest.approx(0.5, rel=1e-5)
    np.testing.assert_allclose(grad, [-1 + 0.1 * 0.5, 0.5 * (-1 - 0.1)], rtol=1e-5)


def test_kl_is_exactly_zero_at_the_reference_and_keeps_its_digits_near_it():
    lp = jnp.log(row(0.3, 0.9))
    assert np.all(np.asarray(k3(lp, lp)) == 0)
    # k3(d) = d^2/2 + d^3/6 + ...: 1e-3 apart it is 5.0e-7, which exp(d) - d - 1 would lose in float32.
    assert float(k3(jnp.float32(0), jnp.float32(1e-3))) == pytest.approx(5.00167e-7, rel=1e-3)


def test_importance_weights_by_hand():
    # pi_old / pi_sampler = 4, capped at 2, and 0.5: objective 2 * 1.1 + 0.5 * -1 = 1.7.
    # The KL term (pi_ref / pi = 1 / rho, k3 = 1/1.1 + log 1.1 - 1 and 0) is not weighted.
    sampler = jnp.log(0.01) - jnp.log(padded([4, 0.5], 1))
    ref = jnp.full((1, WIDTH), jnp.log(0.01))
    loss, sums, grad = grpo([1.1, 1], [1, -1], kl_beta=1.0, ref_logprobs=ref, sampler_logprobs=sampler, importance_cap=2.0)
    kl = 1 / 1.1 + np.log(1.1) - 1
    assert loss == pytest.approx(-1.7 + kl)
    np.testing.assert_allclose(grad, [-2.2 + (1 - 1 / 1.1), 0.5], rtol=1e-5)
    assert sums["sampler_ratio"] == pytest.approx(4.5)
    assert sums["logprob_diff"] == pytest.approx(np.log(4) + np.log(2), rel=1e-5)
    assert sums["max/logprob_diff"] == pytest.approx(np.log(4), rel=1e-5)
    assert sums["importance_capped"] == 1
    # Without a cap the sampler is only measured.
    assert grpo([1.1, 1], [1, -1], sampler_logprobs=sampler)[0] == pytest.approx(-0.1)


@pytest.mark.parametrize("jit", [False, True])
def test_sequence_ratio_by_hand(jit):
    # One row: an untrained prompt token, an answer of 2 tokens, one of 1, one of 2, and padding.
    #   ratios 1.21, 1   s = sqrt(1.21) = 1.1, A = 1:         1.1, and each token's gradient is s A / 2 = 0.55
    #   ratio  0.5       s = 0.5, A = -1: clipped to          -0.8, no gradient
    #   ratios 4, 1      s = 2, A = 1: clipped to              1.2, no gradient, though its second token's own ratio is 1
    loss, sums, grad = grpo(
        [3, 1.21, 1, 0.5, 4, 1, 5],
        [0, 1, 1, -1, 1, 1, 0],
        segments=[1, 1, 1, 2, 3, 3, 0],
        mask=[0, 1, 1, 1, 1, 1, 0],
        weights=[0, 0.5, 0.5, 1, 0.5, 0.5, 0],
        ratio_level="sequence",
        jit=jit,
    )
    assert loss == pytest.approx(-(1.1 - 0.8 + 1.2))
    np.testing.assert_allclose(grad, [0, -0.55, -0.55, 0, 0, 0, 0], rtol=1e-5, atol=1e-7)
    assert sums["ratio"] == pytest.approx(2 * 1.1 + 0.5 + 2 * 2)
    assert (sums["clipped_low"], sums["clipped_high"]) == (1, 2)


def test_sequences_of_different_rows_with_the_same_number_stay_apart():
    # Ratios 4 and 1/4 in two rows, both segment 1: together s would be 1 in both.
    lp = jnp.log(jnp.array([[4.0], [0.25]]))
    zero, one = jnp.zeros((2, 1)), jnp.ones((2, 1))
    loss, _ = grpo_loss(
        lp, old_logprobs=zero, advantages=one, mask=one > 0, weights=one, segments=jnp.ones((2, 1), jnp.int32),
        ratio_level="sequence", clip_high=9.0,
    )  # fmt: skip
    assert float(loss) == pytest.approx(-4.25)


@pytest.mark.parametrize("ratio_level", ["token", "sequence"])
@pytest.mark.parametrize("clip", [0.2, 0.0])
def test_without_old_logprobs_the_ratio_is_one_and_the_gradient_the_policy_gradient(ratio_level, clip):
    # With clip 0 the ratio lies on both bounds, which must not cost it its gradient.
    options = {"ratio_level": ratio_level, "clip_low": clip, "clip_high": clip, "old_logprobs": None}
    loss, sums, grad = grpo([5, 0.1, 3], [2, 2, -1], segments=[1, 1, 2], weights=[0.5, 0.5, 1], **options)
    assert loss == -1.0 and sums["ratio"] == 3.0  # exactly
    np.testing.assert_array_equal(grad, [-1, -1, 1])
    assert sums["clipped_low"] == sums["clipped_high"] == 0


def test_denominators_by_hand():
    # Two answers at ratio 1: |o| = 1 with A = 1, |o| = 3 with A = -1.
    #   sequence: -(1 - (1+1+1)/3) / 2 = 0;   token: -(1 - 3) / 4 = 0.5;   constant, cap 5: -(1 - 3) / (2 * 5) = 0.2
    for normalize, short, long, expected in (("sequence", 1, 1 / 3, 0), ("token", 1, 1, 0.5), ("constant", 1, 1, 0.2)):
        loss, _, _ = grpo([1] * 4, [1, -1, -1, -1], segments=[1, 2, 2, 2], weights=[short] + [long] * 3)
        assert loss / denominator(normalize, answers=2, tokens=4, cap=5) == pytest.approx(expected, abs=1e-6)
    assert denominator("token", answers=4, tokens=0, cap=5) == 1.0
    with pytest.raises(ValueError, match="'mean'"):
        denominator("mean", answers=1, tokens=1, cap=1)


GARBAGE = (np.nan, np.inf, -np.inf, 3e38, -3e38)


@pytest.mark.parametrize("ratio_level", ["token", "sequence"])
def test_what_masked_positions_hold_has_no_effect(ratio_level):
    rng = np.random.default_rng(0)
    shape, segments = (2, 12), np.array([[1] * 6 + [2] * 4 + [0] * 2] * 2)
    mask = (segments > 0) & (np.arange(12) % 6 > 1)
    names = ("logprobs", "old_logprobs", "advantages", "weights", "ref_logprobs", "sampler_logprobs")
    clean = {name: np.where(mask, rng.normal(size=shape), 0).astype(np.float32) for name in names}

    options = {"mask": mask, "segments": segments, "ratio_level": ratio_level, "kl_beta": 0.1, "importance_cap": 2.0}
    f = jax.jit(jax.value_and_grad(lambda logprobs, others: grpo_loss(logprobs, **others, **options), has_aux=True))

    def run(arrays):
        return f(arrays["logprobs"], {k: v for k, v in arrays.items() if k != "logprobs"})

    (loss, sums), grad = run(clean)
    assert np.all(np.asarray(grad)[~mask] == 0) and np.all(np.asarray(grad)[mask] != 0)
    for value in GARBAGE:
        dirty = run({k: np.where(mask, v, np.float32(value)) for k, v in clean.items()})
        jax.tree.map(np.testing.assert_array_equal, dirty, ((loss, sums), grad))


@pytest.mark.parametrize("ratio_level", ["token", "sequence"])
def test_extreme_log_ratios_are_held(ratio_level):
    # A ratio of e^100 overflows float32; it counts as e^20, and pulls no more. The reference's e^100 as well.
    hundred = jnp.full((1, 1), 100.0)
    zero, one = jnp.zeros((1, 1)), jnp.ones((1, 1))
    common = {"mask": one > 0, "weights": one, "segments": jnp.ones((1, 1), jnp.int32), "ratio_level": ratio_level}

    def f(lp):
        return grpo_loss(lp, old_logprobs=zero, advantages=-one, **common)[0]

    assert float(f(hundred)) == pytest.approx(np.exp(MAX_LOG_RATIO), rel=1e-5)
    assert float(jax.grad(f)(hundred)[0, 0]) == 0
    assert float(f(-hundred)) == pytest.approx(0.8)
    assert float(k3(jnp.float32(-100), jnp.float32(0))) == pytest.approx(np.exp(20) - 21, rel=1e-5)
    assert float(jax.grad(k3)(jnp.float32(-100), jnp.float32(0))) == 0
    # Far on the other side k3 is nearly linear, and must go on pulling: 1 - e^-100.
    assert float(jax.grad(k3)(jnp.float32(0), jnp.float32(-100))) == 1


@pytest.mark.parametrize("ratio_level", ["token", "sequence"])
def test_nothing_to_train_on_is_zero(ratio_level):
    loss, sums, grad = grpo([2, 3], [1, 1], mask=[0, 0], segments=[0, 0], ratio_level=ratio_level)
    assert loss == 0 and not grad.any() and set(sums.values()) == {0.0}


def test_terms_without_their_logprobs_are_refused():
    with pytest.raises(ValueError, match="kl_beta is 0.1 but ref_logprobs is None"):
        grpo([1], [1], kl_beta=0.1)
    with pytest.raises(ValueError, match="importance_cap is 2.0 but sampler_logprobs is None"):
        grpo([1], [1], importance_cap=2.0)
    with pytest.raises(ValueError, match="'answer'"):
        grpo([1], [1], ratio_level="answer")


def test_combine_adds_sums_and_keeps_maxima():
    a, b = ({"tokens": jnp.float32(t), "max/logprob_diff": jnp.float32(m)} for t, m in ((3, 0.5), (4, 0.2)))
    assert combine(a, b) == combine(b, a) == {"tokens": 7, "max/logprob_diff": 0.5}
    assert combine(a, jax.tree.map(jnp.zeros_like, a)) == a
    assert combine({"load": (jnp.float32(1), None)}, {"load": (jnp.float32(2), None)}) == {"load": (3, None)}


@pytest.mark.parametrize("jit", [False, True])
def test_cross_entropy_by_hand(jit):
    # -(0.5 log 0.5 + 1 log 0.25) = 0.346574 + 1.386294 = 1.732868; the gradient is -w at trained positions.
    lp = jnp.log(row(0.5, 0.25, 0.1)).at[0, 2].set(jnp.nan)
    f = jax.value_and_grad(cross_entropy, has_aux=True)
    (loss, sums), grad = (jax.jit(f) if jit else f)(lp, jnp.array([[True, True, False]]), row(0.5, 1, 7))
    assert float(loss) == pytest.approx(1.732868, rel=1e-6)
    assert float(sums["nll"]) == pytest.approx(3 * np.log(2), rel=1e-6) and float(sums["tokens"]) == 2
    np.testing.assert_array_equal(grad, [[-0.5, -1, 0]])
