"""Drafts of the multi-token-prediction module: they change how many steps an answer takes, and not how often it comes."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import GQA, MLA, draw, jit

from r1jax import config, sharding
from r1jax.models import cache as caches
from r1jax.models import decoder
from r1jax.plan import memory
from r1jax.rollout import Sampler, stopping
from r1jax.rollout.sampling import draft_tokens, row_keys, verify_tokens
from r1jax.types import FINISH

CAP = 13
MODELS = {
    "gqa": dataclasses.replace(GQA, segments=(config.Segment("dense", 2),), moe=None, mtp_depth=1),
    "mla": dataclasses.replace(MLA, segments=MLA.segments[1:]),
}
WARM = config.Sampling(temperature=0.7, max_new_tokens=CAP)
ENGINE = config.Engine(slots=8, max_prompt_tokens=16, chunk=3, speculative=True)
RNG = np.random.default_rng(5)
PROMPTS = [RNG.integers(0, 48, n).tolist() for n in (4, 8, 1, 6)]
IDS = [10, 11, 12, 13]


def near(model, share=0.06):
    """Parameters whose module drafts much like the trunk: both see the newest token first of all, and little of the rest."""
    params = draw(model)

    def one(path, x):
        name = jax.tree_util.keystr(path)
        return x * share if "'o'" in name or "down" in name else x

    params = jax.tree_util.tree_map_with_path(one, params)
    d, mtp = model.d_model, params["mtp"]
    merge = jnp.concatenate([jnp.eye(d), jnp.zeros((d, d))]) + share * mtp["merge"] / 4
    ones = {"scale": jnp.ones(d)}
    return {**params, "mtp": {**mtp, "merge": merge, "embed_norm": ones, "final_norm": params["final_norm"]}}


def letters(ids):
    return "".join(f"{i:02d}" for i in ids)


def sampler(name, params, end_ids=(), mesh=None, **engine):
    mesh = sharding.make_mesh(config.Mesh(fsdp=1)) if mesh is None else mesh
    made = Sampler(MODELS[name], dataclasses.replace(ENGINE, **engine), mesh, end_ids=end_ids, text=letters, seed=11)
    made.load(params)
    return made


@pytest.fixture(scope="module")
def params():
    return {name: near(model) for name, model in MODELS.items()}


@pytest.fixture(scope="module")
def samplers(params):
    return {name: sampler(name, params[name]) for name in MODELS}


@pytest.fixture(scope="module")
def warm(samplers):
    return {name: answers(one.generate(PROMPTS, WARM, samples=5, round=3, ids=IDS)) for name, one in samplers.items()}


def answers(trajectories):
    """{(prompt id, sample): (token ids, their log-probs, finish)}"""
    t = trajectories
    rows = zip(t.prompt_id, t.sample, t.tokens, t.loss_mask, t.logprobs, t.finish, strict=True)
    return {(int(p), int(s)): (ids[m].tolist(), lp[m], FINISH[f]) for p, s, ids, m, lp, f in rows}


def same(some, all_):
    assert some.keys() == all_.keys()
    for key, (ids, values, finish) in some.items():
        assert (ids, finish) == (all_[key][0], all_[key][2]), key
        np.testing.assert_allclose(values, all_[key][1], atol=1e-5)


def trunk(model, params, temperature):
    """tokens[B, T] -> float32[B, T, V]: log-probabilities of what follows each, from the trainer's form of the forward pass."""

    @jit
    def run(tokens):
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        hidden, _, _ = decoder.forward(params, tokens, positions, jnp.ones_like(tokens), model=model)
        return jax.nn.log_softmax(decoder.logits(params, hidden, model) / temperature)

    return lambda tokens: np.asarray(run(jnp.asarray(tokens, jnp.int32)))


def guesses(model, params):
    """tokens[B, T] -> int32[B, T]: at t the module's most likely token t + 2, from the trainer's form of it."""

    @jit
    def run(tokens):
        positions, segments = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape), jnp.ones_like(tokens)
        hidden, _, _ = decoder.forward(params, tokens, positions, segments, model=model)
        hidden, _ = decoder.mtp(params, hidden, tokens, positions, segments, model=model)
        return decoder.logits(params, hidden, model).argmax(-1)

    return lambda tokens: np.asarray(run(jnp.asarray(tokens, jnp.int32)))


@pytest.mark.parametrize("name", MODELS)
def test_the_most_likely_answer_is_that_of_the_ordinary_loop(samplers, params, name):
    """With caps that end some on the first and some on the second token of a step, and slots that are refilled. The drafts are
    those that the module would make over the whole sequence."""
    greedy = dataclasses.replace(WARM, temperature=0.0)
    caps = [1 + (5 * i) % CAP for i in range(12)]
    prompts = [*PROMPTS, *([7 * i, 3] for i in range(1, 7)), PROMPTS[0][::-1], PROMPTS[1][1:]]
    ordinary = sampler(name, params[name], speculative=False, slots=5)
    expected = answers(ordinary.generate(prompts, greedy, caps=caps))
    same(answers(samplers[name].generate(prompts, greedy, caps=caps)), expected)
    fast, slow = samplers[name].usage, ordinary.usage
    assert 0.15 < fast.accepted / fast.busy < 0.9  # or this test saw one way only
    assert slow.tokens == slow.busy == fast.tokens > fast.busy and slow.metrics(5)["rollout/drafts_accepted"] == 0
    made = accepted = 0
    guess = guesses(MODELS[name], params[name])
    for prompt, cap, (ids, _, _) in zip(prompts, caps, expected.values(), strict=True):
        whole = np.zeros((1, 24), np.int32)
        whole[0, : len(prompt) + len(ids)] = [*prompt, *ids]
        drafts, at = guess(whole)[0, len(prompt) - 1 :], 1
        while at < cap:
            kept = drafts[at - 1] == ids[at]
            made, accepted, at = made + 1, accepted + kept, at + 1 + kept
    assert (fast.busy, fast.accepted) == (made, accepted)


def nucleus(p, top_p):
    """p[..., V] with what is outside the nucleus at 0, summing to 1 again."""
    order = np.argsort(-p, axis=-1)
    ranked = np.take_along_axis(p, order, -1)
    kept = np.zeros_like(p)
    np.put_along_axis(kept, order, np.where(np.cumsum(ranked, -1) - ranked < top_p, ranked, 0), -1)
    return kept / kept.sum(-1, keepdims=True)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 0.7)])
def test_a_draft_that_was_kept_or_replaced_comes_as_often_as_the_trunk_says(temperature, top_p):
    """And it is kept in min(p, q) of all cases, in which what comes behind is drawn from its own distribution."""
    count, vocab = 40_000, 6
    p, q, behind = np.random.default_rng(1).dirichlet(np.full(vocab, 3.0), 3)
    q = (p + 2 * q) / 3
    keys = row_keys(0, 0, jnp.arange(count), jnp.zeros(count, jnp.int32))
    how = {"temperature": temperature, "greedy": False, "top_p": top_p}

    @jit
    def run():
        guess, first, second = (jnp.broadcast_to(jnp.log(jnp.asarray(x, jnp.float32)), (count, vocab)) for x in (q, p, behind))
        position = jnp.full(count, 4)
        draft = draft_tokens(guess, keys, position, **how)
        return verify_tokens(draft, guess, first, second, keys, position, **how)

    (now, values), (then, _), kept = map(partial(jax.tree.map, np.asarray), run())
    p, q, behind = (x ** (1 / temperature) / (x ** (1 / temperature)).sum() for x in (p, q, behind))
    np.testing.assert_allclose(values, np.log(p)[now], atol=1e-5)
    p, q, behind = (nucleus(x, top_p) for x in (p, q, behind))
    share = np.minimum(p, q).sum()
    assert 0.2 < share < 0.9 and abs(kept.mean() - share) < 4 * (share * (1 - share) / count) ** 0.5
    for drawn, expected in ((now, count * p), (then[kept], kept.sum() * behind), (then[kept & (now == p.argmax())], None)):
        expected = len(drawn) * behind if expected is None else expected
        found = np.bincount(drawn, minlength=vocab)
        assert not found[expected == 0].any()
        found, expected = found[expected > 0], expected[expected > 0]
        freedom = len(expected) - 1
        assert ((found - expected) ** 2 / expected).sum() < freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize(("name", "temperature", "top_p"), [("mla", 1.0, 1.0), ("gqa", 0.6, 0.7)])
def test_answers_come_as_often_as_the_trunk_says(name, temperature, top_p):
    """All 1296 answers of four tokens: the second and third come from one step, the fourth from the same or the next."""
    vocab, cap, count, prompt = 6, 4, 30_000, [1, 4, 2]
    model = dataclasses.replace(MODELS[name], vocab_size=vocab)
    params = near(model, 0.3)
    params["head"]["kernel"] /= 2  # flatter, so that many answers are common
    engine = dataclasses.replace(ENGINE, slots=2048)
    one = Sampler(model, engine, sharding.make_mesh(config.Mesh(fsdp=1)), end_ids=(), seed=1)
    one.load(params)
    sampling = config.Sampling(temperature=temperature, top_p=top_p, max_new_tokens=cap)
    drawn = one.generate([prompt], sampling, samples=count).tokens[:, len(prompt) :]
    assert 0.2 < one.usage.accepted / one.usage.busy < 0.9

    every = np.array(list(itertools.product(range(vocab), repeat=cap)))
    rows = np.concatenate([np.tile(prompt, (len(every), 1)), every], axis=1)
    p = np.exp(trunk(model, params, temperature)(rows)[:, len(prompt) - 1 : -1].astype(np.float64))
    p = nucleus(p, top_p)
    expected = count * np.take_along_axis(p, every[:, :, None], -1)[..., 0].prod(-1)
    found = np.bincount(drawn @ vocab ** np.arange(cap - 1, -1, -1), minlength=len(every))
    assert not found[expected == 0].any()
    common = expected >= 5
    rare = [expected[~common].sum()], [found[~common].sum()]
    expected, found = (np.array([*x[common], *(r if rare[0][0] else [])]) for x, r in zip((expected, found), rare, strict=True))
    chi_square, freedom = ((found - expected) ** 2 / expected).sum(), len(expected) - 1
    assert freedom > 20 and abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("name", MODELS)
def test_the_recorded_log_probabilities_are_the_trainers(params, warm, name):
    """Of the whole distribution also where a nucleus was drawn from."""
    run = trunk(MODELS[name], params[name], WARM.temperature)
    for (prompt, _), (ids, values, _) in warm[name].items():
        whole = np.zeros((1, 24), np.int32)
        start = len(PROMPTS[prompt - 10])
        whole[0, : start + len(ids)] = [*PROMPTS[prompt - 10], *ids]
        np.testing.assert_allclose(values, run(whole)[0, np.arange(start - 1, start - 1 + len(ids)), ids], atol=1e-4)


def test_slots_refills_and_a_growing_cache_leave_no_trace(params, warm):
    """Three slots, a cache that begins with 8 places, and 10,000 wherever a row holds nothing."""
    one = sampler("mla", params["mla"], slots=3, buckets=(8, 14, 21))
    programs = one.programs(1)
    poisoned = jax.jit(lambda c: jax.tree.map(lambda x: jnp.full_like(x, 1e4), c))
    object.__setattr__(programs, "block", lambda f=programs.block, **how: poisoned(f(**how)))
    object.__setattr__(programs, "empty", lambda f=programs.empty, **how: (s := f(**how)).replace(cache=poisoned(s.cache)))
    same(answers(one.generate(PROMPTS, WARM, samples=5, round=3, ids=IDS)), warm["mla"])
    assert set(one._programs) == {1, 2, 3}


def test_rows_may_lie_on_several_devices(params, warm):
    mesh = sharding.make_mesh(config.Mesh(fsdp=2, expert=2, tensor=2))
    one = sampler("mla", params["mla"], mesh=mesh)
    same(answers(one.generate(PROMPTS, WARM, samples=5, round=3, ids=IDS)), warm["mla"])


def test_end_tokens_caps_and_stop_strings_cut_the_answer_and_change_nothing_before(samplers, params, warm):
    whole = warm["gqa"]
    counts = np.bincount([t for ids, _, _ in whole.values() for t in ids])
    end = tuple(np.argsort(-counts)[:2].tolist())
    stop = tuple(letters(ids[5:7])[1:3] for ids, _, _ in list(whole.values())[::7])
    caps = [1 + i % CAP for i in range(20)]
    one = sampler("gqa", params["gqa"], end)
    found = answers(one.generate(PROMPTS, dataclasses.replace(WARM, stop=stop), samples=5, round=3, ids=IDS, caps=caps))
    finishes = set()
    for cap, (key, (ids, values, _)) in zip(caps, whole.items(), strict=True):
        ends = [(cap, "length")]
        ends += [(i + 1, "stop") for i, token in enumerate(ids) if token in end][:1]
        if (at := stopping.find(ids, 0, stop, letters)) is not None:
            ends.append((at, "stop_string"))
        length = min(n for n, _ in ends)
        assert found[key][0] == ids[:length], key
        assert (length, found[key][2]) in ends
        np.testing.assert_allclose(found[key][1], values[:length], atol=1e-5)
        finishes.add(found[key][2])
    assert finishes == {"length", "stop", "stop_string"}


def test_an_answer_that_is_watched_is_the_same(samplers, warm):
    for i, prompt in enumerate(PROMPTS):
        parts = list(samplers["gqa"].stream(prompt, WARM, chunk=2, round=3, id=10 + i))
        ids = warm["gqa"][10 + i, 0][0]
        assert len(parts) > 2 and answers(parts[-1])[10 + i, 0][0] == ids
        shown = [part.tokens[0, part.loss_mask[0]].tolist() for part in parts]
        assert shown == [ids[: len(part)] for part in shown]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_module_that_knows_what_the_trunk_will_say_halves_the_steps(samplers, params, temperature):
    """Layers that add nothing leave a trunk that sees the newest token alone, and a module that sees the same."""
    one = samplers["gqa"]
    one.load(near(MODELS["gqa"], 0.0))
    one.generate(PROMPTS, dataclasses.replace(WARM, temperature=temperature), samples=2)
    one.load(params["gqa"])
    metrics = one.usage.metrics(8)
    assert one.usage.steps == (CAP - 1) // 2
    assert (metrics["rollout/drafts_accepted"], metrics["rollout/tokens_per_step"], metrics["rollout/slots_busy"]) == (1, 2, 1)


def test_tokens_per_step_are_one_and_the_drafts_that_were_kept(samplers):
    """A step that ends an answer may keep a draft and drop what follows it, so of 20 answers at most 20 are missing."""
    samplers["mla"].generate(PROMPTS, WARM, samples=5)
    usage = samplers["mla"].usage
    assert usage.tokens == 20 * (CAP - 1)
    assert 0 <= usage.busy + usage.accepted - usage.tokens <= 20 < usage.accepted


def test_the_cache_holds_the_module_too():
    mesh = sharding.make_mesh(config.Mesh(fsdp=1))
    for model in MODELS.values():
        per_token = caches.per_token(model)
        assert caches.per_token(model, mtp=True) * model.n_layers == per_token * (model.n_layers + 1)
        ordinary, speculative = (
            memory.Sampling.of(model, mesh, dataclasses.replace(ENGINE, speculative=on), 16).cache for on in (False, True)
        )
        assert speculative - ordinary == 32 * 8 * per_token // model.n_layers


def test_a_model_without_a_module_is_refused():
    model = dataclasses.replace(GQA, mtp_depth=0)
    with pytest.raises(config.ConfigError, match="engine.speculative.*model.mtp_depth is 0"):
        Sampler(model, ENGINE, sharding.make_mesh(config.Mesh(fsdp=1)), end_ids=())
