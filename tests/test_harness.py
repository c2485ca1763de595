"""The adapter for lm-evaluation-harness against the model's full logits, with a stand-in for the package where it is not."""

import dataclasses
import functools
import importlib.util
import json
import sys
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from r1jax import config, loading, params
from r1jax.checkpoint import Checkpointer
from r1jax.config import SFT, ConfigError, Text
from r1jax.data import tokenizer
from r1jax.models import decoder

TEXT = Text(tokenizer="bytes", template="{{ prompt }}")
TOKENIZER = dataclasses.replace(tokenizer.byte_tokenizer(), chat_template="{{ messages[-1].content }}|")
END = TOKENIZER.end_ids[0]


class Request(NamedTuple):
    args: tuple


@pytest.fixture(scope="module")
def harness():
    if importlib.util.find_spec("lm_eval") is None:
        names = ("lm_eval", "lm_eval.api", "lm_eval.api.model")
        sys.modules |= {name: types.ModuleType(name) for name in names}
        sys.modules[names[-1]].LM = type("LM", (), {"__init__": lambda self: None})
    from r1jax.eval import harness

    return harness


@pytest.fixture(scope="module")
def model(tmp_path_factory, harness):
    path = tmp_path_factory.mktemp("runs") / "tiny"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config.to_json(SFT(model=tiny.DENSE, text=TEXT, sequence_length=24))))
    loading.describe(path, tiny.DENSE, TEXT, TOKENIZER)
    checkpoints = Checkpointer(path / "checkpoints")
    checkpoints.save(1, {"params": weights()}, {}, 0.5)
    checkpoints.close()
    yield harness.Model(str(path), slots=8, mesh={"fsdp": 1})


def weights():
    rng = np.random.default_rng(0)
    specs = decoder.specs(tiny.DENSE)
    return params.map_specs(lambda s: jnp.array(rng.normal(s.init == "ones", 0.4, s.shape), s.dtype), specs)


@functools.cache
def forward():
    """int32[1, 40] to float32[40, V]: the whole vocabulary at once."""
    held, every = weights(), jnp.ones((1, 40), jnp.int32)

    @jax.jit
    def run(tokens):
        hidden, _, _ = decoder.forward(held, tokens, jnp.arange(40)[None], every, model=tiny.DENSE)
        return jax.nn.log_softmax(hidden[0] @ decoder.head_kernel(held))

    return run


def logprobs(ids):
    """float32[n, V] of n tokens."""
    return np.asarray(forward()(np.array([[*ids, *[7] * (40 - len(ids))]], np.int32)))[: len(ids)]


def test_loglikelihood(model):
    assert model.max_length == 24
    encode = TOKENIZER.encode
    greedy = TOKENIZER.decode([int(logprobs(encode("ab"))[-1].argmax())])
    long = "abcdefghijklmnopqrstuvwxyz"
    cases = [  # what is asked, the tokens that are read, how many of the last are scored
        (("ab", "cde"), encode("abcde"), 3),
        (("ab ", "c"), encode("ab c"), 2),  # the space is the continuation's
        (("", "xy"), [END, *encode("xy")], 2),
        ((long, "12"), encode(long + "12")[-25:], 2),
        (("ab", greedy), encode("ab" + greedy), 1),
    ]
    found = model.loglikelihood([Request(asked) for asked, _, _ in cases])
    for (value, is_greedy), (_, ids, count) in zip(found, cases, strict=True):
        table = logprobs(ids)[-count - 1 : -1]
        targets = ids[-count:]
        assert value == pytest.approx(table[np.arange(count), targets].sum(), abs=1e-4)
        assert is_greedy == bool((table.argmax(-1) == targets).all())
    assert [is_greedy for _, is_greedy in found] == [False] * 4 + [True]


def test_loglikelihood_rolling_scores_each_token_once(model, harness):
    text = "".join(chr(97 + i % 26) for i in range(60))
    short, long = model.loglikelihood_rolling([Request((text[:10],)), Request((text,))])
    ids = [END, *TOKENIZER.encode(text)]
    assert short == pytest.approx(sum(logprobs(ids[:11])[i, ids[i + 1]] for i in range(10)), abs=1e-4)
    # 24 in each window; the last has the last 12 as new ones, and the 12 before as context.
    expected = 0.0
    for first, new in ((0, 24), (24, 24), (36, 12)):
        row = ids[first : first + 25]
        expected += logprobs(row)[np.arange(24 - new, 24), row[25 - new :]].sum()
    assert long == pytest.approx(expected, abs=1e-3)
    for length in (1, 2, 5, 61, 62, 100):
        windows = list(harness.windows(range(62), length))
        assert [t for row, new in windows for t in row[len(row) - new :]] == list(range(1, 62))
        assert all(len(row) == min(length + 1, 62) for row, _ in windows)


def test_generate_until(model):
    def greedy(ids, count):
        out = []
        while len(out) < count and (not out or out[-1] != END):
            out.append(int(logprobs([*ids, *out])[-1].argmax()))
        return TOKENIZER.decode(out[:-1] if out and out[-1] == END else out)

    whole = greedy(TOKENIZER.encode("ab"), 12)
    cut = whole[4:6]
    assert cut not in whole[:4]
    long = "abcdefghijklmnopqrstuvwxyz"
    found = model.generate_until([
        Request(("ab", {"until": ["never"], "max_gen_toks": 12, "do_sample": False, "temperature": 0.7})),
        Request(("ab", {"until": cut, "max_gen_toks": 12})),
        Request((long, {"until": [], "max_gen_toks": 4})),
    ])  # fmt: skip
    assert found == [whole, whole[:4], greedy(TOKENIZER.encode(long)[-20:], 4)]
    drawn = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8, "top_k": 0}
    first, second, other = model.generate_until([Request(("ab", drawn)), Request(("ab", drawn)), Request(("ba", drawn))])
    assert first != second  # questions have streams of their own
    with pytest.raises(ConfigError, match="the task samples with top_k=5, which r1jax does not"):
        model.generate_until([Request(("ab", {"top_k": 5}))])


def test_the_chat_template_is_the_models(model):
    assert model.apply_chat_template([{"role": "user", "content": "hi"}]) == "hi|" or TEXT.template != "auto"
    assert model.tokenizer_name and "{{" in model.chat_template()
