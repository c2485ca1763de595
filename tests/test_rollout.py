"""Sampling: what an answer is must depend on nothing but the run, the round, the question and the number of the answer."""

import dataclasses
import gc
import math
import re
import weakref
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import GQA, MLA, draw, jit

from r1jax import config, sharding
from r1jax.models import cache as caches
from r1jax.models import decoder
from r1jax.models.logprobs import token_logprobs
from r1jax.observe import compiling
from r1jax.rollout import Sampler
from r1jax.rollout import sampler as sampler_module
from r1jax.rollout.sampling import _inverse_cdf, row_keys, sample_tokens
from r1jax.types import FINISH, GOING

CAP = 12
END = (28, 29, 31)  # end some of the answers below at their first token, some later, and some not at all
MODELS = {
    "gqa": dataclasses.replace(GQA, segments=(config.Segment("dense", 2),), moe=None),
    "mla": dataclasses.replace(MLA, segments=MLA.segments[1:], mtp_depth=0),
}
RNG = np.random.default_rng(5)
PROMPTS = [RNG.integers(0, 48, n).tolist() for n in (4, 8, 1, 6)]
LONG = RNG.integers(0, 48, 15).tolist()
WARM = config.Sampling(temperature=0.7, max_new_tokens=CAP)


def letters(ids):
    """Every token is two digits, so what lies between two tokens is a string too."""
    return "".join(f"{i:02d}" for i in ids)


def one_device():
    return sharding.make_mesh(config.Mesh(fsdp=1))


@pytest.fixture(scope="module")
def params():
    return {name: draw(model) for name, model in MODELS.items()}


@pytest.fixture(scope="module")
def samplers(params):
    engine = config.Engine(slots=8, max_prompt_tokens=32, chunk=5)
    made = {name: Sampler(model, engine, one_device(), end_ids=END, text=letters, seed=11) for name, model in MODELS.items()}
    for name, sampler in made.items():
        sampler.load(params[name])
    return made


@pytest.fixture(scope="module")
def warm(samplers):
    return samplers["gqa"].generate(PROMPTS, WARM, samples=2, round=3, ids=[10, 11, 12, 13])


def answers(trajectories):
    """{(prompt id, sample): (token ids, their log-probs, finish)}"""
    return {
        (int(p), int(s)): (t[m].tolist(), lp[m], FINISH[f])
        for p, s, t, m, lp, f in zip(
            trajectories.prompt_id, trajectories.sample, trajectories.tokens, trajectories.loss_mask, trajectories.logprobs,
            trajectories.finish, strict=True,
        )
    }  # fmt: skip


def same(some, all_):
    assert some
    for key, (ids, values, finish) in some.items():
        assert (ids, finish) == (all_[key][0], all_[key][2]), key
        np.testing.assert_allclose(values, all_[key][1], atol=1e-5)


def test_rows_hold_prompt_and_answer_and_nothing_after(warm):
    assert len(warm.tokens) == 8 and warm.tokens.shape[1] == warm.length.max()
    for i, (owner, sample) in enumerate((o, s) for o in range(4) for s in range(2)):
        start, end = len(PROMPTS[owner]), int(warm.length[i])
        assert (warm.prompt_id[i], warm.sample[i], warm.prompt_length[i]) == (10 + owner, sample, start)
        assert warm.tokens[i, :start].tolist() == PROMPTS[owner]
        np.testing.assert_array_equal(
            warm.loss_mask[i], (np.arange(warm.tokens.shape[1]) >= start) & (np.arange(warm.tokens.shape[1]) < end)
        )
        assert not warm.tokens[i, end:].any() and not warm.logprobs[i][~warm.loss_mask[i]].any()


def test_an_end_token_is_kept_and_ends_the_answer(warm):
    finishes = set()
    for ids, values, finish in answers(warm).values():
        ended = [i for i, t in enumerate(ids) if t in END]
        assert ended == ([len(ids) - 1] if finish == "stop" else [])
        assert len(ids) == CAP or finish == "stop"
        assert (values < 0).all()
        finishes.add(finish)
    assert finishes == {"stop", "length"}  # or this test saw nothing


def test_answers_do_not_depend_on_slots_or_neighbours(samplers, warm):
    other = samplers["gqa"].generate([PROMPTS[2], PROMPTS[3][::-1], PROMPTS[0]], WARM, samples=2, round=3, ids=[12, 77, 10])
    found = answers(other)
    same({k: v for k, v in found.items() if k[0] != 77}, answers(warm))
    assert not any(found[77, s][0] == found[12, s][0] for s in range(2))


def test_answers_do_not_depend_on_the_prompt_bucket(samplers, warm):
    found = answers(samplers["gqa"].generate([LONG, *PROMPTS[:2]], WARM, samples=2, round=3, ids=[1, 10, 11]))
    same({k: v for k, v in found.items() if k[0] != 1}, answers(warm))


def test_answers_do_not_depend_on_how_many_are_asked_for_or_in_how_many_passes(samplers, warm):
    seen = []
    whole = samplers["gqa"].generate(
        PROMPTS[:2], WARM, samples=10, round=3, ids=[10, 11], progress=lambda rows, part: seen.append((rows, part))
    )
    found = answers(whole)
    assert list(found) == [(p, s) for p in (10, 11) for s in range(10)]
    same({k: found[k] for k in found if k[1] < 2}, answers(warm))
    rows = np.concatenate([rows for rows, _ in seen])
    assert sorted(rows) == list(range(20)) and len(seen) > 2
    told = [name for _, part in seen for name in answers(part)]
    assert told == [list(found)[row] for row in rows]  # in whatever order they ended
    for _, part in seen:
        for name, (ids, values, finish) in answers(part).items():
            assert (ids, finish) == (found[name][0], found[name][2]) and (values == found[name][1]).all()
    whole = [tuple(ids) for ids, _, finish in found.values() if finish == "length"]
    assert len(set(whole)) == len(whole) > 2


def test_refilled_slots_and_a_growing_cache_leave_no_trace(samplers, params, warm, monkeypatch):
    """Three slots for twenty answers of many lengths, a cache that begins with 8 places, and 10,000 wherever a row holds
    nothing: exactly the answers of slots that are never refilled, and the same ones whatever the number of slots."""
    one = Sampler(MODELS["gqa"], dataclasses.replace(samplers["gqa"].engine, slots=3, buckets=(8, 14, 50)), one_device(),
                  end_ids=END, text=letters, seed=11)  # fmt: skip
    one.load(params["gqa"])
    programs = one.programs(1)
    poisoned = jax.jit(lambda c: jax.tree.map(lambda x: jnp.full_like(x, 1e4), c))
    object.__setattr__(programs, "block", lambda f=programs.block, **how: poisoned(f(**how)))
    object.__setattr__(programs, "empty", lambda f=programs.empty, **how: (s := f(**how)).replace(cache=poisoned(s.cache)))
    found = answers(one.generate(PROMPTS, WARM, samples=5, round=3, ids=[10, 11, 12, 13]))
    assert len(found) == 20 and one.usage.steps * 3 < 20 * CAP  # more passes than one, and slots that did not wait
    same({k: found[k] for k in found if k[1] < 2}, answers(warm))
    assert set(one._programs) == {1, 2, 3}


def test_every_answer_may_have_a_cap_of_its_own(samplers, warm):
    caps = [1 + i % CAP for i in range(8)]
    found = answers(samplers["gqa"].generate(PROMPTS, WARM, samples=2, round=3, ids=[10, 11, 12, 13], caps=caps))
    for cap, (key, (ids, _, finish)) in zip(caps, answers(warm).items(), strict=True):
        assert found[key][0] == ids[:cap]
        assert found[key][2] == (finish if cap >= len(ids) and finish == "stop" else "length"), key
    for wrong in ([1] * 7, [0] * 8, [CAP + 1] * 8):
        with pytest.raises(ValueError, match="caps must be 8 numbers from 1 to max_new_tokens 12"):
            samplers["gqa"].generate(PROMPTS, WARM, samples=2, caps=wrong)


def test_short_answers_do_not_wait_for_long_ones(samplers):
    """One answer in four is long: the slots of the others are refilled, so that the steps are near the tokens per slot."""
    caps = [CAP if i % 4 == 0 else 2 for i in range(64)]
    never = Sampler(MODELS["gqa"], samplers["gqa"].engine, one_device(), end_ids=(), seed=11)
    never.params = samplers["gqa"].params
    t = never.generate([PROMPTS[0]] * 64, WARM, ids=range(64), caps=caps)
    assert (t.length - t.prompt_length).tolist() == caps
    whole_passes = (64 // 8) * (CAP - 1)
    assert never.usage.steps < 0.5 * whole_passes
    assert never.usage.metrics(8)["rollout/slots_busy"] > 0.6


def test_the_cache_follows_what_is_held(samplers, params):
    """96 tokens are kept by one row of four; the bytes at the peak are those of the bucket, and shrink behind it."""
    engine = config.Engine(slots=4, max_prompt_tokens=32, chunk=4, buckets=(16, 32, 128))
    one = Sampler(MODELS["gqa"], engine, one_device(), end_ids=(), seed=11)
    one.load(params["gqa"])
    held, fit = [], sampler_module._Run._fit

    def watch(run, steps):
        room = fit(run, steps)
        held.append(sum(sampler_module.caches.lengths(run.state.cache, run.sampler.model)))
        return room

    sampler_module._Run._fit = watch
    try:
        one.generate([[1, 2]] * 9, dataclasses.replace(WARM, max_new_tokens=90), ids=range(9), caps=[90] + [5] * 7 + [60])
    finally:
        sampler_module._Run._fit = fit
    assert held[0] == 16 and max(held) == 128 and sorted(set(held)) == [16, 32, 128]
    assert one.usage.cache_peak == 128 * 4 * sampler_module.caches.per_token(MODELS["gqa"])


def test_another_round_or_prompt_id_or_seed_draws_other_answers(samplers, params, warm):
    before = answers(warm)
    for other in (
        samplers["gqa"].generate(PROMPTS, WARM, samples=2, round=4, ids=[10, 11, 12, 13]),
        samplers["gqa"].generate(PROMPTS, WARM, samples=2, round=3, ids=[20, 21, 22, 23]),
    ):
        assert all(new[0] != old[0] for new, old in zip(answers(other).values(), before.values(), strict=True))
    assert len({tuple(ids) for ids, _, _ in before.values()}) == 8
    keys = [jax.random.key_data(row_keys(seed, 3, jnp.arange(2), jnp.arange(2))) for seed in (11, 12)]
    assert (keys[0] != keys[1]).any(-1).all()


@partial(jit, static_argnames=("model", "temperature"))
def trainer(params, tokens, model, temperature):
    """(log-prob of every token given those before it, the most likely next token) by the whole forward pass."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _, _ = decoder.forward(params, tokens, positions, jnp.ones_like(tokens), model=model)
    kernel = decoder.head_kernel(params)
    values, _ = token_logprobs(hidden, kernel, jnp.roll(tokens, -1, axis=1), temperature=temperature)
    return jnp.roll(values, 1, axis=1), jnp.roll((hidden @ kernel).argmax(-1), 1, axis=1)


@pytest.mark.parametrize(("name", "temperature"), [("gqa", 0.7), ("gqa", 0.0), ("mla", 0.7)])
def test_the_trainer_agrees_about_every_sampled_token(samplers, params, warm, name, temperature):
    if name == "gqa" and temperature:
        got = warm
    else:
        sampling = config.Sampling(temperature=temperature, max_new_tokens=CAP)
        got = samplers[name].generate(PROMPTS, sampling, samples=2 if temperature else 1, round=3)
    tokens = np.zeros((8, 20), np.int32)
    tokens[: len(got.tokens), : got.tokens.shape[1]] = got.tokens
    values, best = (
        np.asarray(x)[: len(got.tokens), : got.tokens.shape[1]]
        for x in trainer(params[name], tokens, MODELS[name], temperature or 1.0)
    )
    np.testing.assert_allclose(got.logprobs[got.loss_mask], values[got.loss_mask], atol=1e-4)
    chosen = got.tokens[got.loss_mask] == best[got.loss_mask]
    assert chosen.all() if temperature == 0 else not chosen.all()


def test_a_stop_string_ends_the_answer_where_it_is_complete_even_across_tokens(samplers, warm):
    before = answers(warm)
    whole = [ids for ids, _, finish in before.values() if finish == "length"]
    across = letters(whole[0][6:8])[1:3]  # the second digit of one token and the first of the next
    at_the_cap = letters(whole[-1][CAP - 3 : CAP - 1])
    before_the_end = letters(next(ids for ids, _, finish in before.values() if finish == "stop" and len(ids) == 5)[2:4])
    stop = (across, at_the_cap, before_the_end)
    sampling = dataclasses.replace(WARM, stop=stop)
    found = answers(samplers["gqa"].generate(PROMPTS, sampling, samples=2, round=3, ids=[10, 11, 12, 13]))
    stopped = 0
    for key, (ids, values, finish) in found.items():
        text = letters(before[key][0])
        ends = [text.find(s) + len(s) for s in stop if s in text]
        length = -(-min(ends) // 2) if ends else len(text) // 2
        assert ids == before[key][0][:length], key
        np.testing.assert_allclose(values, before[key][1][:length], atol=1e-6)
        assert finish == ("stop_string" if ends else before[key][2])
        stopped += bool(ends)
    assert 3 <= stopped < 8


def test_looking_for_stop_strings_costs_what_is_new(samplers, warm, monkeypatch):
    decoded = []
    monkeypatch.setattr(samplers["gqa"], "text", lambda ids: decoded.append(len(ids)) or letters(ids))
    sampling, margin = dataclasses.replace(WARM, stop=("no",)), 2
    found = samplers["gqa"].generate(PROMPTS, sampling, samples=2, round=3, ids=[10, 11, 12, 13])
    same(answers(found), answers(warm))
    lengths = found.length - found.prompt_length
    looks = -(-lengths // 5)
    assert (looks > 1).any() and sum(decoded) <= lengths.sum() + margin * looks.sum()  # nothing twice but the margin

    decoded.clear()
    ids, id = max((ids, id) for (id, sample), (ids, _, _) in answers(warm).items() if sample == 0 and len(ids) > 8)
    stopping = dataclasses.replace(WARM, stop=(letters(ids[6:8]),))
    *_, last = samplers["gqa"].stream(PROMPTS[id - 10], stopping, chunk=CAP, round=3, id=id)
    assert FINISH[last.finish[0]] == "stop_string" and len(decoded) <= 2 + np.log2(CAP)


@pytest.fixture
def compiled():
    """The programs that were compiled since the test began, by name."""
    names = []

    def heard(event, seconds, fun_name="", **_):
        if event == compiling.COMPILED:
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(heard)
    yield names
    jax.monitoring.unregister_event_duration_listener(heard)


def test_an_answer_that_is_watched_is_the_same_and_compiles_nothing_more(samplers, warm, compiled):
    """Nor does it when its text is looked at for stop strings after every chunk."""
    whole = answers(warm)
    for stop in ((), ("no digits",)):
        for i, prompt in enumerate(PROMPTS):
            sampling = dataclasses.replace(WARM, stop=stop)
            steps = list(samplers["gqa"].stream(prompt, sampling, chunk=5, round=3, id=10 + i))
            ids, _, finish = whole[10 + i, 0]
            assert [s.tokens[0, s.loss_mask[0]].tolist() for s in steps] == [ids[:n] for n in range(5, len(ids), 5)] + [ids]
            assert [int(s.finish[0]) for s in steps] == [GOING] * (len(steps) - 1) + [FINISH.index(finish)]
            same(answers(steps[-1]), whole)
    # one prompt at a time is another prefill; the decode loop is the one that `warm` has compiled
    assert compiled.count("jit(admit)") <= 1 and "jit(decode)" not in compiled
    assert {len(ids) > 5 for ids, _, _ in whole.values()} == {True, False}


def test_a_cap_of_one_token(samplers, warm):
    found = answers(
        samplers["gqa"].generate(PROMPTS, dataclasses.replace(WARM, max_new_tokens=1), samples=2, round=3, ids=[10, 11, 12, 13])
    )
    for key, (ids, _, _) in answers(warm).items():
        assert found[key][0] == ids[:1]
        assert found[key][2] == ("stop" if ids[0] in END else "length")


def test_mistakes_are_refused(samplers, params):
    sampler = samplers["gqa"]
    with pytest.raises(ValueError, match="33 tokens.*32.*engine.max_prompt_tokens"):
        sampler.generate([[1], [1] * 33], WARM)
    for empty in ([], [[1], []]):
        with pytest.raises(ValueError, match="at least one token"):
            sampler.generate(empty, WARM)
    bare = Sampler(MODELS["gqa"], dataclasses.replace(sampler.engine, buckets=(16, 24)), sampler.mesh, end_ids=END)
    with pytest.raises(ValueError, match="load"):
        bare.generate(PROMPTS, WARM)
    bare.load(params["gqa"])
    with pytest.raises(ValueError, match="text"):
        bare.generate(PROMPTS, dataclasses.replace(WARM, stop=("a",)))
    with pytest.raises(ValueError, match="25 tokens.*24"):
        bare.generate([[1] * 13], WARM)


def test_weights_go_before_others_come_and_with_the_sampler(params, monkeypatch):
    gc.disable()  # a pipeline's next stage loads its weights long before the collector comes by
    try:
        sampler = Sampler(MODELS["gqa"], config.Engine(slots=1, max_prompt_tokens=8), one_device(), end_ids=END)
        sampler.load(params["gqa"])
        first, gone, take = weakref.ref(sampler.params["final_norm"]["scale"]), [], sampler._weights.take
        monkeypatch.setattr(sampler._weights, "take", lambda new: gone.append(first() is None) or take(new))
        sampler.load(params["gqa"])
        assert gone == [True]
        sampler.generate([[1]], dataclasses.replace(WARM, max_new_tokens=1))
        second = weakref.ref(sampler.params["final_norm"]["scale"])
        monkeypatch.undo()
        del sampler
        assert second() is None
    finally:
        gc.enable()


# -- Several devices

COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter)(?:-start)?\(")
WIDE = {"vocab_size": 64, "d_model": 128, "d_ff": 128, "moe": config.MoE(n_experts=4, d_ff=128), "mtp_depth": 0}
GQA_WIDE = dataclasses.replace(GQA, **WIDE, attention=config.GQA(n_heads=4, n_kv_heads=2, head_dim=32))
MLA_WIDE = dataclasses.replace(
    MLA, **WIDE, attention=config.MLA(n_heads=4, q_rank=64, kv_rank=64, nope_dim=32, rope_dim=16, v_dim=32)
)
SPLIT = config.Mesh(fsdp=2, expert=2, tensor=2)


@pytest.mark.parametrize(
    ("model", "mesh"), [(GQA_WIDE, config.Mesh()), (GQA_WIDE, SPLIT), (MLA_WIDE, SPLIT)], ids=["gqa fsdp", "gqa", "mla"]
)
def test_no_device_sends_weights_or_cache_for_a_token(model, mesh):
    sampler = Sampler(model, config.Engine(slots=8, max_prompt_tokens=32), sharding.make_mesh(mesh), end_ids=END)
    state = jax.eval_shape(partial(sampler._loop.empty, length=32, cap=32))
    more = jax.eval_shape(partial(sampler._loop.block, length=32))
    state = state.replace(cache=caches.grow(state.cache, more))
    lay = partial(jax.tree.map, lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s))
    with sharding.using(sampler.mesh, sampler.rules):
        lowered = sampler.programs(2).decode.lower(
            sampler._weights.abstract(), state=lay(state, sampler._layout(2)), steps=np.int32(4), enough=np.int32(8),
            temperature=np.float32(1), greedy=False, top_p=0.9,
        )  # fmt: skip
    program = lowered.compile({"xla_backend_optimization_level": 0}).as_text()
    sent = [
        (math.prod(int(n) for n in shape.split(",") if n), kind)
        for result, kind in COLLECTIVE.findall(program)
        for shape in re.findall(r"\w+\[([\d,]*)\]", result)
    ]
    assert sent and max(sent)[0] <= 8 * 128, max(sent)  # activations; a part of a kernel is more


# -- One token


def draws(probabilities, count, top_p=1.0, temperature=1.0):
    """How often each token comes in ``count`` rows of the same distribution, and a log-prob of each token."""
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(probabilities, jnp.float32)) * temperature, (count, len(probabilities)))
    keys = row_keys(0, 0, jnp.arange(count), jnp.zeros(count, jnp.int32))
    sample = jit(partial(sample_tokens, greedy=False, top_p=top_p))
    tokens, values = sample(logits, keys, jnp.full(count, 4), temperature=temperature)
    return np.bincount(tokens, minlength=len(probabilities)), dict(zip(tokens.tolist(), values.tolist(), strict=True))


def test_the_nucleus_is_the_smallest_set_with_enough_probability():
    p = np.array([0.1, 0.4, 0.05, 0.3, 0.15])
    counts, values = draws(p, 4000, top_p=0.69)
    assert set(np.flatnonzero(counts)) == {1, 3}
    for token in (1, 3):
        share = p[token] / 0.7
        assert abs(counts[token] - 4000 * share) < 4 * (4000 * share * (1 - share)) ** 0.5
        assert values[token] == pytest.approx(np.log(p[token]), abs=1e-5)  # of the whole distribution, as the trainer's
    assert set(np.flatnonzero(draws(p, 4000, top_p=0.71)[0])) == {1, 3, 4}


@pytest.mark.parametrize("vocab", [5, 12, 50])  # blocks of 2, 3 and 7: the last one is short
def test_tokens_come_as_often_as_the_softmax_says(vocab):
    p = np.random.default_rng(vocab).dirichlet(np.full(vocab, 3.0))
    counts, values = draws(p, 20_000, temperature=0.5)
    chi_square = ((counts - 20_000 * p) ** 2 / (20_000 * p)).sum()
    assert abs(chi_square - (vocab - 1)) < 4 * (2 * (vocab - 1)) ** 0.5
    for token, value in values.items():
        assert value == pytest.approx(np.log(p[token]), abs=1e-4)


def test_rounding_never_leads_to_a_token_of_probability_0():
    """Random numbers at the borders of blocks, where rounding decides which block it is and how far into it."""
    rng, jitted = np.random.default_rng(0), jit(_inverse_cdf)
    for _ in range(5):
        p = np.exp(3 * rng.standard_normal(71 * 70)).astype(np.float32)
        p[p < np.quantile(p, 0.9)] = 0
        ends = np.asarray(jnp.cumsum(jnp.asarray(p).reshape(71, 70).sum(-1)))
        border = (ends / ends[-1])[:-1]
        uniform = np.concatenate([border, np.nextafter(border, np.float32(0)), np.nextafter(border, np.float32(1))])
        token = np.asarray(jitted(np.broadcast_to(p, (210, 71 * 70)), np.clip(uniform, 0, 1 - 2**-24)))
        assert (token < len(p)).all() and (p[token] > 0).all()
