"""The router and the experts against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import config
from r1jax.nn import moe
from r1jax.train.update import balance_router

# x is one-hot, so a router row is a token's logits. Two groups of three experts; one group may be used.
SCORES = np.array(
    [
        [0.9, 0.1, 0.1, 0.6, 0.5, 0.3],  # two best: 1.0 against 1.1, so the best expert's group loses
        [0.6, 0.5, 0.01, 0.4, 0.4, 0.4],  # 1.1 against 0.8; by the sum of all three the second would win
    ]
)
GROUPED = config.MoE(n_experts=6, top_k=2, n_groups=2, top_groups=1, scale=2.5)
SIX = jnp.zeros(6)


def routed(settings, scores=SCORES, bias=SIX, **options):
    logits = np.log(scores / (1 - scores)) if settings.scoring == "sigmoid" else np.log(scores)
    params = {"router": jnp.asarray(logits, jnp.float32), "router_bias": jnp.asarray(bias, jnp.float32)}
    return moe.route(params, jnp.eye(len(scores))[None], settings, **options)


def as_dict(routing, token):
    pairs = zip(routing.experts[0, token].tolist(), routing.gates[0, token].tolist(), strict=True)
    return {e: pytest.approx(g, rel=1e-5) for e, g in pairs}


def test_a_group_is_chosen_by_its_two_best_and_the_gates_are_renormalised_and_scaled():
    routing = routed(GROUPED)
    assert as_dict(routing, 0) == {3: 2.5 * 0.6 / 1.1, 4: 2.5 * 0.5 / 1.1}
    assert as_dict(routing, 1) == {0: 2.5 * 0.6 / 1.1, 1: 2.5 * 0.5 / 1.1}


def test_one_group_more_lets_the_best_expert_in():
    settings = config.MoE(n_experts=6, top_k=2, n_groups=2, top_groups=2)
    assert as_dict(routed(settings), 0) == {0: 0.9 / 1.5, 3: 0.6 / 1.5}
    assert as_dict(routed(config.MoE(n_experts=6, top_k=2)), 0) == {0: 0.9 / 1.5, 3: 0.6 / 1.5}


def test_the_bias_moves_the_choice_and_leaves_the_gates():
    within = as_dict(routed(GROUPED, bias=[0, 0, 0, 0, 0, 0.25]), 0)  # 0.3 + 0.25 passes 0.5
    assert within == {3: 2.5 * 0.6 / 0.9, 5: 2.5 * 0.3 / 0.9}
    across = as_dict(routed(GROUPED, bias=[0, 0.3, 0, 0, 0, 0]), 0)  # 0.9 + 0.4 passes 1.1
    assert across == {0: 2.5 * 0.9 / 1.0, 1: 2.5 * 0.1 / 1.0}


def test_a_negative_bias_does_not_let_another_group_in():
    # The chosen group's biased scores are below 0, as those of excluded experts would be if they were set to 0.
    settings = config.MoE(n_experts=6, top_k=2, n_groups=2, top_groups=1)
    routing = routed(settings, bias=[-1, -1, -1, -1, -1, -1])
    assert set(as_dict(routing, 0)) == {3, 4}


def test_without_renormalising_the_gates_are_the_scaled_scores():
    settings = config.MoE(n_experts=6, top_k=2, n_groups=2, top_groups=1, renormalize=False, scale=2.0)
    assert as_dict(routed(settings), 0) == {3: 1.2, 4: 1.0}


def test_softmax_routing():
    p = np.array([[0.4, 0.05, 0.3, 0.05, 0.15, 0.05]])
    settings = config.MoE(n_experts=6, top_k=2, scoring="softmax", bias=False)
    assert as_dict(routed(settings, p), 0) == {0: 0.4 / 0.7, 2: 0.3 / 0.7}
    raw = config.MoE(n_experts=6, top_k=2, scoring="softmax", bias=False, renormalize=False)
    assert as_dict(routed(raw, p), 0) == {0: 0.4, 2: 0.3}


def test_the_gradient_reaches_the_chosen_scores_only():
    """With S = s3 + s4: d g3 / d s3 = 2.5 s4 / S^2, d g3 / d s4 = -2.5 s3 / S^2, and d s / d logit = s (1 - s)."""
    x, logits = jnp.ones((1, 1, 1)), np.log(SCORES[:1] / (1 - SCORES[:1]))

    def gate_of_3(params):
        routing = moe.route(params, x, GROUPED)
        return jnp.where(routing.experts == 3, routing.gates, 0.0).sum()

    grads = jax.grad(gate_of_3)({"router": jnp.asarray(logits, jnp.float32), "router_bias": SIX})
    expected = [0, 0, 0, 2.5 * 0.5 / 1.21 * 0.6 * 0.4, -2.5 * 0.6 / 1.21 * 0.5 * 0.5, 0]
    np.testing.assert_allclose(grads["router"][0], expected, rtol=1e-5, atol=1e-7)
    assert not grads["router_bias"].any()


def test_replayed_routes_are_taken_as_they_are_and_weighed_by_the_scores():
    routes = jnp.array([[[0, 5], [2, 3]]])  # neither allowed by the groups
    assert as_dict(routed(GROUPED, routes=routes), 0) == {0: 2.5 * 0.9 / 1.2, 5: 2.5 * 0.3 / 1.2}


# Two sequences in one row and padding: 2 experts, one chosen per token.
ROUTING = moe.Routing(
    experts=jnp.array([[[0], [0], [1], [1], [1]]]),
    gates=jnp.ones((1, 5, 1)),
    scores=jnp.array([[[0.6, 0.2], [0.5, 0.5], [0.2, 0.6], [0.1, 0.3], [0.9, 0.1]]]),
)
SEGMENTS = jnp.array([[1, 1, 1, 2, 0]])


def test_load_counts_choices_of_tokens_that_are_there():
    np.testing.assert_array_equal(moe.load(ROUTING, SEGMENTS > 0), [2, 2])
    np.testing.assert_array_equal(moe.load(ROUTING, SEGMENTS >= 0), [2, 3])


def test_balance_loss_of_two_packed_sequences():
    """Sequence 1: f = 2/(1*3) * [2, 1], P = [0.75 + 0.5 + 0.25, 0.25 + 0.5 + 0.75] / 3, so 1; sequence 2: f = 2 * [0, 1],
    P = [0.25, 0.75], so 1.5."""
    assert float(moe.balance_loss(ROUTING, SEGMENTS, 1)) == pytest.approx(1.0 + 1.5, rel=1e-6)
    np.testing.assert_allclose(moe.balance_loss(ROUTING, jnp.array([[1, 1, 1, 0, 0]]), 1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(moe.balance_loss(ROUTING, jnp.array([[0, 0, 0, 1, 0]]), 1), 1.5, rtol=1e-6)


def test_balance_loss_does_not_depend_on_rows_or_on_sequence_numbers():
    apart = moe.Routing(*(jnp.concatenate([a, a]) for a in ROUTING))
    segments = jnp.array([[4, 4, 4, 0, 0], [0, 0, 0, 5, 0]])
    np.testing.assert_allclose(moe.balance_loss(apart, segments, 1), 2.5, rtol=1e-6)


def test_balance_loss_pushes_the_chosen_score_down_and_never_the_choice():
    def loss(scores):
        return moe.balance_loss(ROUTING._replace(scores=scores), jnp.array([[0, 0, 0, 1, 0]]), 1)

    # f = [0, 2]; share = s1 / (s0 + s1): d/ds0 = -2 * 0.3 / 0.16, d/ds1 = 2 * 0.1 / 0.16
    np.testing.assert_allclose(jax.grad(loss)(ROUTING.scores)[0, 3], [-3.75, 1.25], rtol=1e-5)


def test_the_bias_moves_by_the_rate_towards_the_mean_load():
    def segment(bias):
        return {"ff": {"router": jnp.ones((2, 3)), "router_bias": jnp.array(bias)}}

    dense = {"ff": {"gate": jnp.ones((1, 2))}}
    params = {
        "segments": (dense, segment([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])),
        "mtp": {"merge": jnp.ones(1), "layer": segment([0.0, 0.0, 0.0])},
    }
    sums = {"load": (None, jnp.array([[4.0, 1.0, 1.0], [10.0, 20.0, 30.0]])), "mtp_load": (jnp.array([0.0, 0.0, 9.0]),)}
    new = balance_router(params, sums, 0.25)
    np.testing.assert_array_equal(new["segments"][1]["ff"]["router_bias"], [[-0.25, 0.25, 0.25], [0.75, 0.5, 0.25]])
    np.testing.assert_array_equal(new["mtp"]["layer"]["ff"]["router_bias"], [0.25, 0.25, -0.25])
    np.testing.assert_array_equal(new["segments"][1]["ff"]["router"], params["segments"][1]["ff"]["router"])
    assert new["segments"][0] == dense


@pytest.mark.parametrize("shared", [0, 2])
def test_experts_are_a_gated_sum_of_swiglus(shared):
    settings = config.MoE(n_experts=6, top_k=2, d_ff=3, n_shared=shared, n_groups=2, top_groups=1, scale=2.5)
    model = config.Model(d_model=4, segments=(config.Segment("moe"),), moe=settings)
    rng = np.random.default_rng(0)
    shapes = {"router": (4, 6), "router_bias": (6,), "gate": (6, 4, 3), "up": (6, 4, 3), "down": (6, 3, 4)}
    params = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    if shared:
        params["shared"] = {
            "gate": rng.standard_normal((4, 6)),
            "up": rng.standard_normal((4, 6)),
            "down": rng.standard_normal((6, 4)),
        }
    x = rng.standard_normal((2, 3, 4))

    out, routing, _ = moe.moe(jax.tree.map(jnp.float32, params), jnp.float32(x), model)

    def swiglu(x, gate, up, down):
        return (x @ gate / (1 + np.exp(-(x @ gate))) * (x @ up)) @ down

    for b, t in np.ndindex(2, 3):
        expected = sum(
            float(g) * swiglu(x[b, t], *(params[n][int(e)] for n in ("gate", "up", "down")))
            for e, g in zip(routing.experts[b, t], routing.gates[b, t], strict=True)
        )
        if shared:
            expected = expected + swiglu(x[b, t], **params["shared"])
        np.testing.assert_allclose(out[b, t], expected, rtol=2e-4, atol=1e-4)
