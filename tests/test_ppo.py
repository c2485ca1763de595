"""PPO's arithmetic against numbers worked out by hand and a loop over tokens; its critic in the loop, saved and resumed."""

import contextlib
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from rich.console import Console

from r1jax import config, rundir
from r1jax.config import ConfigError
from r1jax.losses import ppo
from r1jax.losses.distillation import teacher_advantages
from r1jax.params import path_name
from r1jax.plan import memory
from r1jax.stages import grpo, workspace
from r1jax.stages.prepare import prepare

pytestmark = pytest.mark.timeout(900)  # seconds; on an idle machine a test takes 5 to 20


# -- Arrays

# Two answers in a row, of 3 and 2 tokens, before each a token of its prompt, and padding. Outside the mask stands NaN.
MASK = np.array([[0, 1, 1, 1, 0, 1, 1, 0]], bool)
SCORES = np.where(MASK, [[9, 1, 1, 1, 9, -2, -2, 9]], np.nan).astype(np.float32)
VALUES = np.where(MASK, [[9, 0.5, 0.25, 0.75, 9, 1, 0, 9]], np.nan).astype(np.float32)


def at(values):
    """The numbers at masked positions."""
    found = np.asarray(values)
    assert not found[~MASK].any()
    return found[MASK]


def test_rewards_of_tokens_by_hand():
    np.testing.assert_array_equal(at(ppo.token_rewards(SCORES, MASK)), [0, 0, 1, 0, -2])
    kl = np.where(MASK, [[0, 1, 2, -1, 0, 0.5, 1, 0]], np.nan).astype(np.float32)
    np.testing.assert_allclose(at(ppo.token_rewards(SCORES, MASK, kl, 0.1)), [-0.1, -0.2, 1.1, -0.05, -2.1], rtol=1e-6)


@pytest.mark.parametrize("jit", [False, True])
def test_advantages_by_hand(jit):
    rewards = ppo.token_rewards(SCORES, MASK)
    # lambda 1: all that follows, less the value. 1 - 0.5, 1 - 0.25, 1 - 0.75; -2 - 1, -2 - 0.
    gae = jax.jit(ppo.gae, static_argnames=("gamma", "lam")) if jit else ppo.gae
    advantages, returns = gae(rewards, VALUES, MASK, lam=1.0)
    np.testing.assert_allclose(at(advantages), [0.5, 0.75, 0.25, -3, -2], rtol=1e-6)
    np.testing.assert_allclose(at(returns), [1, 1, 1, -2, -2], rtol=1e-6)
    # lambda 0.95: deltas -0.25, 0.5, 0.25 and -1, -2;
    #   0.5 + 0.95 * 0.25 = 0.7375, -0.25 + 0.95 * 0.7375 = 0.450625, and -1 - 0.95 * 2 = -2.9.
    advantages, returns = gae(rewards, VALUES, MASK, lam=0.95)
    np.testing.assert_allclose(at(advantages), [0.450625, 0.7375, 0.25, -2.9, -2], rtol=1e-6)
    np.testing.assert_allclose(at(returns), [0.950625, 0.9875, 1, -1.9, -2], rtol=1e-6)


def by_loops(rewards, values, mask, gamma, lam):
    """Equation 16 as it is printed: a sum over all later deltas, for each token of each answer."""
    found = np.zeros(mask.shape)
    for row in range(mask.shape[0]):
        for t in np.flatnonzero(mask[row]):
            end = t
            while end + 1 < mask.shape[1] and mask[row, end + 1]:
                end += 1
            for i in range(t, end + 1):
                after = values[row, i + 1] if i < end else 0.0
                found[row, t] += (gamma * lam) ** (i - t) * (rewards[row, i] + gamma * after - values[row, i])
    return found


@pytest.mark.parametrize("gamma, lam", [(1.0, 1.0), (1.0, 0.95), (0.9, 0.95), (0.97, 0.0)])
def test_advantages_are_the_printed_sums(gamma, lam):
    rng = np.random.default_rng(0)
    mask = rng.random((2, 3, 40)) < 0.8
    rewards, values = rng.standard_normal((2, 2, 3, 40)).astype(np.float32)
    found, returns = ppo.gae(rewards, values, mask, gamma=gamma, lam=lam)
    expected = [by_loops(rewards[i], values[i], mask[i], gamma, lam) for i in range(2)]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(returns, np.where(mask, expected + values, 0), atol=1e-5)


def test_whitened_advantages_have_mean_0_and_variance_1_over_all_batches():
    rng = np.random.default_rng(1)
    given = [(3 + 2 * rng.standard_normal((2, n))).astype(np.float32) for n in (50, 30)]
    masks = [rng.random(x.shape) < 0.6 for x in given]
    found = ppo.whiten(given, masks)
    kept = np.concatenate([np.asarray(x)[m] for x, m in zip(found, masks, strict=True)])
    before = np.concatenate([x[m] for x, m in zip(given, masks, strict=True)])
    np.testing.assert_allclose(kept, (before - before.mean()) / before.std(), atol=1e-5)
    assert all(not np.asarray(x)[~m].any() for x, m in zip(found, masks, strict=True))
    # Nothing to tell apart: nothing is blown up.
    assert np.abs(ppo.whiten([np.full((1, 8), 0.1, np.float32)], [MASK])[0]).max() < 1e-3


def test_the_loss_of_values_by_hand():
    values = jnp.array([[0.0, 0.5, 1.5, 0.9, 0.0, -1.0, 0.3, 0.0]])
    returns = np.where(MASK, [[0, 1, 1, 1, 0, 0, 0, 0]], np.nan).astype(np.float32)
    old = np.where(MASK, [[0, 0, 1, 1, 0, 0, 0, 0]], np.nan).astype(np.float32)

    def loss(values, clip):
        return ppo.value_loss(values, old_values=old, returns=returns, mask=MASK, clip=clip)

    # Errors -0.5, 0.5, -0.1, -1, 0.3.  Squares 0.25 + 0.25 + 0.01 + 1 + 0.09 = 1.6, half of it 0.8.
    (plain, sums), grad = jax.value_and_grad(loss, has_aux=True)(values, 0.0)
    assert float(plain) == pytest.approx(0.8)
    np.testing.assert_allclose(at(grad), [-0.5, 0.5, -0.1, -1, 0.3], atol=1e-6)
    assert {k: float(v) for k, v in sums.items()} == pytest.approx(
        {"values": 0.8, "tokens": 5, "value": 2.2, "value_error": 1.6, "value_clipped": 0, "return": 3, "return_square": 3}
    )
    # Held within 0.2 of old: 0.2, 1.2, 0.9, -0.2, 0.2 with errors -0.8, 0.2, -0.1, -0.2, 0.2; the larger square of the two:
    # 0.64, 0.25, 0.01, 1, 0.09: only the first is held, and gets no gradient.
    (clipped, sums), grad = jax.value_and_grad(loss, has_aux=True)(values, 0.2)
    assert float(clipped) == pytest.approx(0.995) and float(sums["value_clipped"]) == 1
    np.testing.assert_allclose(at(grad), [0, 0.5, -0.1, -1, 0.3], atol=1e-6)


def test_a_teachers_advantages_by_hand():
    old = np.where(MASK, np.log([[1, 0.5, 0.2, 0.4, 1, 0.1, 0.8, 1]]), np.nan).astype(np.float32)
    teacher = np.where(MASK, np.log([[1, 0.25, 0.4, 0.4, 1, 0.2, 0.4, 1]]), np.nan).astype(np.float32)
    found, sums = teacher_advantages(old, teacher, MASK)
    np.testing.assert_allclose(at(found), np.log([0.5, 2, 1, 2, 0.5]), atol=1e-6)
    assert float(sums["teacher_kl"]) == pytest.approx(0, abs=1e-6)


def test_a_teachers_advantages_have_the_gradient_of_the_reverse_kl():
    """Summed over every token with its probability, against automatic differentiation of KL(pi || teacher)."""
    rng = np.random.default_rng(2)
    logits, teacher = (jnp.asarray(rng.standard_normal(6), jnp.float32) for _ in range(2))
    theirs = jax.nn.log_softmax(teacher)

    def kl(logits):
        own = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(own) * (own - theirs))

    own = jax.nn.log_softmax(logits)
    advantages, _ = teacher_advantages(own[None], theirs[None], jnp.ones((1, 6), bool))
    surrogate = jax.grad(lambda x: -jnp.sum(jnp.exp(own) * advantages[0] * jax.nn.log_softmax(x)))(logits)
    np.testing.assert_allclose(surrogate, jax.grad(kl)(logits), atol=1e-6)


# -- Configs


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"group": 1}, "at least 2 answers"),
        ({"advantage": "gae", "group": 0}, "at least 1 answer"),
        ({"advantage": "none"}, "name a teacher"),
        ({"advantage": "gae", "gae_lambda": 1.5}, "gae_lambda 1.5"),
        ({"advantage": "gae", "dynamic_sampling": 1}, "set it to 0"),
        ({"advantage": "gae", "init": "x", "lora": config.LoRA(rank=2)}, "the critic has no adapters"),
        ({"kl_in_reward": True}, "set advantage to 'gae'"),
        ({"advantage": "gae", "kl_in_reward": True, "kl_beta": 0.0}, "kl_beta above 0"),
        ({"dynamic_reward": "accuracy"}, "set that to 1 or more"),
        ({"dynamic_reward": "accuracy", "dynamic_sampling": 2}, "'accuracy'; source 'tiny' has"),
    ],
)
def test_objectives_that_cannot_be_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        tiny.grpo(**changes)


# -- The critic in the loop


@contextlib.contextmanager
def working(stage, path):
    described = config.to_json(stage)
    run = rundir.open_or_resume(path, described) if rundir.is_run(path) else rundir.create("tiny", described, path)
    try:
        with workspace.open_workspace(prepare(stage, run=path if rundir.is_run(path) else None), run, "tiny") as work:
            work.display.console = Console(file=io.StringIO())
            yield work
    finally:
        run.close()


def leaves(tree):
    return {path_name(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def same(a, b):
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


LAM = 0.95
GAE = {
    "advantage": "gae", "gae_lambda": LAM, "group": 1, "questions": 8, "minibatches": 1, "kl_beta": 0.0, "steps": 3,
    "critic": config.Critic(optimizer=config.Optimizer(lr=0.02, warmup_steps=0)), "checkpoint": config.Checkpoint(every=1),
}  # fmt: skip


def test_a_critic_learns_beside_the_policy_and_is_resumed_exactly(tmp_path):
    """Begun again after its first step, a run ends as the undisturbed one: weights, the critic's too, and metrics."""
    stage = tiny.grpo(**GAE)
    with working(stage, tmp_path / "whole") as work:
        state = work.critic_state
        held = sum(x.nbytes for x in jax.tree.leaves((state.params, state.opt_state, state.master)))
        assert memory.table(stage, tiny.MOE, work.mesh).critic == held > 0
        begun = jax.tree.map(np.array, work.critic_state.params)
        np.testing.assert_array_equal(begun["embed"]["table"], work.state.params["embed"]["table"])
        assert not begun["value"]["kernel"].any() and "head" not in begun
        grpo.train(work)
        work.checkpoints.wait()
        whole = jax.tree.map(np.array, (work.state, work.critic_state))
    assert int(whole[1].step) == 3 and np.abs(whole[1].params["value"]["kernel"]).max() > 0
    assert not np.array_equal(whole[1].params["embed"]["table"], begun["embed"]["table"])
    rows = tiny.metrics(tmp_path / "whole")
    assert rows[0]["critic/value"] == 0 and all(row["critic/value"] != 0 for row in rows[1:])
    assert rows[0]["ratio"] == pytest.approx(1, abs=1e-6) and "groups/no_signal" not in rows[0]
    # While all values are 0 a token is to earn its answer's reward, 0.95 times it for each token that comes after.
    first = [x for x in tiny.samples(tmp_path / "whole") if x["step"] == 1]
    wanted = [x["reward"] * LAM**k for x in first for k in range(x["length"])]
    assert rows[0]["critic/return"] == pytest.approx(np.mean(wanted), rel=1e-5)
    assert rows[0]["critic/loss"] == pytest.approx(np.mean(np.square(wanted)) / 2, rel=1e-5)
    with working(stage, tmp_path / "again") as work:
        grpo.play_round(work)
        work.checkpoints.wait()
    with working(stage, tmp_path / "again") as work:
        assert work.step == 1 and work.state.critic is None
        grpo.train(work)
        same((work.state, work.critic_state), whole)
    assert tiny.metrics(tmp_path / "again") == rows


def test_a_critic_lowers_its_error_on_a_round_that_it_sees_again(tmp_path):
    stage = tiny.grpo(**GAE | {"kl_beta": 0.5, "kl_in_reward": True, "reference_every": 0})
    with working(stage, tmp_path / "run") as work:
        seen = {}
        original = work.critic.judge

        def judge(state, batches):
            seen["given"], seen["judged"] = batches, original(state, batches)
            return seen["judged"]

        work.critic.judge = judge
        grpo.play_round(work)
        grpo.play_round(work)
        ((given, count, _),), ((judged, _, _),) = seen["given"], seen["judged"]
        # The second round's policy is no longer the reference: its tokens pay for that, by hand.
        mask = np.asarray(given.mask)
        kl = np.asarray(given.old_logprobs - given.ref_logprobs)
        assert np.abs(kl[mask]).max() > 1e-3
        rewards = np.where(mask & ~np.pad(mask, ((0, 0), (0, 0), (0, 1)))[..., 1:], np.asarray(given.advantages), 0)
        rewards = rewards - 0.5 * np.where(mask, kl, 0)
        rows = zip(rewards, np.asarray(judged.values), mask, strict=True)
        expected = np.stack([by_loops(*row, 1.0, LAM) for row in rows])
        np.testing.assert_allclose(judged.returns, np.where(mask, expected + np.asarray(judged.values), 0), atol=1e-4)
        whitened = (expected - expected[mask].mean()) / expected[mask].std()
        np.testing.assert_allclose(judged.advantages, np.where(mask, whitened, 0), atol=1e-3)
        # Of the returns' variance; saying their mean, whatever the tokens, explains none. The loss is no measure: it cannot
        # fall below that of values that are held near the rollout's.
        explained = []
        for _ in range(10):
            work.critic_state, told = work.critic.update(work.critic_state, judged, count)
            explained.append(float(told["critic/explained"]))
        assert explained[0] < 0.25 and explained[-1] > 0.4
