"""Logits of packed rows, multi-token prediction, routing and greedy continuations are those of transformers, in float32."""

import dataclasses
import functools
from functools import partial

import hf_reference
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_reference
from parity import mutations, noticed, passes, replaced
from random_models import GQA, MLA, MOE, draw, jit
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek

from r1jax import config, sharding
from r1jax.data.packing import pack_sequences
from r1jax.models import decoder
from r1jax.nn import moe
from r1jax.rollout import Sampler

pytestmark = pytest.mark.parity

RNG = np.random.default_rng(4)
SEQUENCES = [RNG.integers(0, 48, n).tolist() for n in (9, 14, 7, 12, 10, 6, 11, 8)]


# -- Forward pass of DeepSeek-V3: packing, multi-token prediction, routing


@functools.cache
def forward():
    """Of every sequence, out of packed and padded rows: logits of the next token and of the one after it, float32[n, V], and
    the experts of each token, sorted."""
    batch, _ = pack_sequences(SEQUENCES, SEQUENCES, rows=4, length=20)
    tokens, positions, segments = (x[0] for x in (batch.tokens, batch.positions, batch.segments))
    assert segments.max() > 1 and not segments.all()
    tokens = np.where(segments > 0, tokens, 41)  # the padding is a token like any other

    @jit
    def run(params):
        hidden, aux, _ = decoder.forward(params, tokens, positions, segments, model=MLA)
        ahead, _ = decoder.mtp(params, hidden, tokens, positions, segments, model=MLA)
        return hidden @ decoder.head_kernel(params), ahead @ decoder.head_kernel(params), jnp.sort(aux.routes[1][0])

    out = [np.asarray(x) for x in run(draw(MLA))]
    rows = [(row, here == s) for row, here in enumerate(segments) for s in range(1, here.max() + 1)]
    places = {tuple(tokens[place]): place for place in rows}
    return [[x[places[tuple(s)]] for x in out] for s in SEQUENCES]


def check_forward(ahead=1, sequences=SEQUENCES, **fields):
    """Against each sequence alone and unpadded, and against all of them padded on the left."""
    policy = torch_reference.Policy("DeepseekV3", draw(MLA), replaced(MLA, **fields)).requires_grad_(False)
    for ids, (logits, next_logits, experts) in zip(sequences, forward(), strict=True):
        theirs, theirs_next = policy(torch.tensor([ids]))
        np.testing.assert_allclose(logits, theirs[0], atol=5e-5)
        np.testing.assert_allclose(next_logits[:-1], theirs_next[0, :-1], atol=5e-5)
        ((_, _, chosen),) = policy.routed.values()
        np.testing.assert_array_equal(experts, chosen.sort(-1).values)
    longest = max(map(len, sequences))
    tokens = torch.tensor([[0] * (longest - len(s)) + s for s in sequences])
    there = torch.tensor([[0] * (longest - len(s)) + [1] * len(s) for s in sequences])
    left = policy.trunk(tokens, attention_mask=there, position_ids=(there.cumsum(-1) - 1).clamp(min=0)).logits
    for row, (logits, _, _) in zip(left, forward(), strict=True):
        np.testing.assert_allclose(logits, row[longest - len(logits) :], atol=5e-5)


def test_packed_rows_are_transformers_sequences_alone_and_padded():
    passes(check_forward)


@mutations(
    {
        "eps": {"norm_eps": 1e-5},
        "halves instead of neighbours": {"rope__interleaved": False},
        "no mscale": {"rope__mscale_all_dim": 0.0},
        "every group": {"moe__top_groups": 4},
        "no renormalising": {"moe__renormalize": False},
        "a token of the neighbour": {"sequences": [[*s[:-1], 0] for s in SEQUENCES]},
    }
)
def test_another_forward_pass_is_noticed(change):
    noticed(check_forward, change)


ROUTERS = {
    "V3": MOE,
    "without groups": dataclasses.replace(MOE, n_groups=1, top_groups=1, top_k=3),
    "not renormalised": dataclasses.replace(MOE, renormalize=False, scale=16.0, top_groups=1),
}
ROUTER = {"router": RNG.normal(0, 0.25, (32, 8)).astype(np.float32), "router_bias": RNG.normal(0, 0.2, 8).astype(np.float32)}
POINTS = RNG.normal(size=(3, 50, 32)).astype(np.float32)


def check_routes(settings, bias_in_gates=False, **fields):
    routing = moe.route(ROUTER, POINTS, settings)

    model = dataclasses.replace(MLA, moe=replaced(settings, **fields))
    gate = deepseek.DeepseekV3TopkRouter(hf_reference.configuration("DeepseekV3", model))
    bias = torch.tensor(ROUTER["router_bias"])
    gate.load_state_dict({"weight": torch.tensor(ROUTER["router"].T), "e_score_correction_bias": bias})
    with torch.no_grad():
        logits, weights, experts = gate(torch.tensor(POINTS))
    if bias_in_gates:
        weights = weights + bias[experts]

    def by_expert(experts, gates):
        """float32[N, E], 0 where an expert was not chosen."""
        table = np.zeros((len(experts), 8), np.float32)
        np.put_along_axis(table, experts, gates, axis=1)
        return table

    ours = (np.asarray(x).reshape(150, -1) for x in (routing.experts, routing.gates))
    np.testing.assert_allclose(by_expert(*ours), by_expert(experts.numpy(), weights.numpy()), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.asarray(routing.scores).reshape(150, -1), logits.sigmoid(), atol=1e-6)


checks_of_routes = {name: partial(check_routes, settings) for name, settings in ROUTERS.items()}


@pytest.mark.parametrize("name", ROUTERS)
def test_experts_and_gates_are_those_of_transformers(name):
    passes(checks_of_routes[name])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("V3", {"bias_in_gates": True}),
        ("V3", {"top_groups": 1}),
        ("V3", {"n_groups": 2}),
        ("V3", {"scale": 2.4}),
        ("V3", {"renormalize": False}),
        ("without groups", {"n_groups": 2}),
        ("not renormalised", {"renormalize": True}),
    ],
)
def test_other_routing_is_noticed(name, change):
    noticed(checks_of_routes[name], change)


# -- Greedy continuations

CAP, END = 12, (7, 28)
QWEN3 = dataclasses.replace(
    GQA, segments=(config.Segment("dense", 2),), attention=config.GQA(4, 2, 8, qk_norm=True), moe=None, tied=True
)
GENERATED = {"DeepseekV3": dataclasses.replace(MLA, mtp_depth=0), "Qwen3": QWEN3}
QUESTIONS = [RNG.integers(0, 48, n).tolist() for n in (4, 8, 1, 6, 3, 5)]


@functools.cache
def greedy(kind):
    """[(tokens, their log-probs)] of each prompt."""
    model = GENERATED[kind]
    engine = config.Engine(slots=len(QUESTIONS), max_prompt_tokens=8)
    sampler = Sampler(model, engine, sharding.make_mesh(config.Mesh(fsdp=1)), end_ids=END)
    sampler.load(draw(model))
    t = sampler.generate(QUESTIONS, config.Sampling(temperature=0.0, max_new_tokens=CAP))
    rows = zip(t.tokens, t.logprobs, t.loss_mask, strict=True)
    return [(tokens[mask].tolist(), values[mask]) for tokens, values, mask in rows]


def check_greedy(kind, end=END, **fields):
    model = replaced(GENERATED[kind], **fields)
    theirs = hf_reference.build(kind, draw(GENERATED[kind]), model)
    for prompt, (tokens, values) in zip(QUESTIONS, greedy(kind), strict=True):
        out = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=CAP,
            eos_token_id=list(end),
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        expected = out.sequences[0, len(prompt) :].tolist()
        assert tokens == expected
        table = torch.cat(out.logits).log_softmax(-1)
        np.testing.assert_allclose(values, table[range(len(expected)), expected], atol=1e-4)


checks_of_greedy = {kind: partial(check_greedy, kind) for kind in GENERATED}


@pytest.mark.parametrize("kind", GENERATED)
def test_greedy_continuations_are_those_of_transformers(kind):
    lengths = {len(tokens) for tokens, _ in greedy(kind)}
    assert len(lengths) > 1 and CAP in lengths  # some end early, or this test saw no end
    assert len({t for tokens, _ in greedy(kind) for t in tokens}) > 6
    passes(checks_of_greedy[kind])


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("DeepseekV3", {"norm_eps": 1e-4}),
        ("DeepseekV3", {"rope__interleaved": False}),
        ("DeepseekV3", {"moe__scale": 2.4}),
        ("DeepseekV3", {"end": ()}),
        ("Qwen3", {"norm_eps": 1e-4}),
        ("Qwen3", {"rope__theta": 9000.0}),
        ("Qwen3", {"end": END[:1]}),
    ],
)
def test_other_continuations_are_noticed(kind, change):
    noticed(checks_of_greedy[kind], change)
