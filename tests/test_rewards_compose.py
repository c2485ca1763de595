"""Names with options, R1's sums of rewards, other libraries' functions, and tokens that reach the rewards."""

import asyncio
import json

import pytest

from r1jax import config, rewards
from r1jax.rewards import Item, Pool, Score, adapters, compose
from r1jax.rewards.load import BUILT_IN, load

# -- Names with options

MINE = """
from typing import Literal
def plain(prompt, completion, row): return 1.0
def scaled(prompt, completion, row, *, by: float, kind: Literal["up", "down"] = "up", more: dict[str, list] | None = None):
    return by * len(completion) * (1 if kind == "up" else -1)
def anything(prompt, completion, row, **options): return len(options)
def picky(prompt, completion, row, *, n: int = 1): return n
def ready(n=1):
    if n > 3: raise ValueError(f"n is {n}; at most 3")
picky.ready = ready
"""


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    return f"{tmp_path}/mine.py:"


def test_options_in_a_name_become_arguments(mine):
    assert load('overlong{"max_tokens":8,"buffer":4}')("", "", {"_tokens": [0] * 6}).value == -0.5
    assert load('tag_count{"tags":["a","b"]}')("", "a", {}).value == 0.5
    assert load("tag_count{}")("", "<think>", {}).value == 0.25
    assert load(mine + 'scaled{"by": 2, "kind": "down"}')("", "abc", {}) == -6.0
    assert load(mine + 'scaled{"by": 2, "more": {"a": [1]}}')("", "abc", {}) == 6.0
    assert load(mine + 'anything{"a": 1, "b": 2}')("", "", {}) == 2
    assert load(mine + 'picky{"n": 3}')("", "", {}) == 3


@pytest.mark.parametrize(
    "name, message",
    [
        ('format{"stile":"r1"}', "it has no option 'stile'; its options are style, strict"),
        ('format{"style":"r2"}', "option 'style': 'r2' is not one of 'r1-zero', 'r1'"),
        ('format{"strict":1}', "option 'strict': expected bool, got 1"),
        ('format{"style":"r1"', "its options are not JSON"),
        ('format{style:"r1"}', r'its options are not JSON, .*; write them as format{"option":1}'),
        ('accuracy{"a":1}', "it has no option 'a'; it has none"),
        ("overlong", "it needs the option 'max_tokens'"),
        ('overlong{"max_tokens":8}', "it needs the option 'buffer'"),
        ('overlong{"max_tokens":8,"buffer":9}', "buffer is 9 and max_tokens 8; it must be 0 < buffer <= max_tokens"),
        ('overlong{"max_tokens":8,"buffer":0}', "buffer is 0"),
        ('overlong{"max_tokens":"8","buffer":4}', "option 'max_tokens': expected int, got '8'"),
        ('repetition{"n":0}', "option 'n' is 0; it must be at least 1"),
        ('numeric{"rel_tol":-1}', "rel_tol is -1.0"),
        ('numeric{"abs_tol":NaN}', "abs_tol nan"),
        ('tag_count{"tags":[]}', "option 'tags' is empty"),
        ('tag_count{"tags":[1]}', "option 'tags'"),
        ('language{"target":"de"}', "option 'target'"),
        ('nothing{"a":1}', "not a built-in"),
    ],
)
def test_wrong_options_are_refused_in_one_line(name, message):
    with pytest.raises(ValueError, match=message) as error:
        load(name)
    assert str(error.value).startswith(f"reward {name!r}: ") and "\n" not in str(error.value)


def test_wrong_options_of_ones_own_rewards_are_refused(mine):
    for options, message in [
        ('plain{"a":1}', "it has none"),
        ("scaled", "it needs the option 'by'"),
        ('scaled{"by":1,"to":2}', "its options are by, kind, more"),
        ('scaled{"by":"x"}', "expected float, got 'x'"),
        ('picky{"n":4}', "n is 4; at most 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            load(mine + options)


def test_a_worker_takes_and_refuses_names_with_options(mine):
    names = ('overlong{"max_tokens":8,"buffer":4}', mine + 'scaled{"by":2}')
    with Pool(config.Workers(count=1)) as pool:
        (scores,) = pool.score([Item("", "abc", {"_tokens": [0] * 6}, names)])
        assert [scores[name].value for name in names] == [-0.5, 6.0]
        with pytest.raises(ValueError, match="it has no option 'by'"):
            pool.check(['format{"by":2}'])


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_name_names_a_function(name):
    required = {"overlong": '{"max_tokens":8,"buffer":4}'}
    try:
        load(name + required.get(name, ""))
    except ValueError as e:  # it needs something that is not here
        assert "not a built-in" not in str(e) and "has no" not in str(e)


# -- Composition


def test_r1s_sums_are_equations_4_and_8_to_10():
    values = {"accuracy": 1.0, "format": 0.0, 'format{"style":"r1"}': 1.0, "language": 0.75, "helpful": -1.5, "safety": 0.25}
    scores = {name: Score(value) for name, value in values.items()}
    for weights, by_hand in [
        (compose.rule(), 1.0 + 0.0),
        (compose.rule("accuracy", compose.R1_FORMAT), 1.0 + 1.0),
        (compose.reasoning(), 1.0 + 1.0 + 0.75),
        (compose.general("helpful"), -1.5 + 1.0 + 0.75),
        (compose.general("safety"), 0.25 + 1.0 + 0.75),
        (compose.general(), 1.0 + 0.75),
    ]:
        assert rewards.total(scores, weights) == by_hand
    assert next(iter(compose.rule("code"))) == "code" and next(iter(compose.reasoning("choice"))) == "choice"


def test_the_sums_go_into_a_config_and_their_rewards_load():
    source = config.Source(rewards=compose.reasoning())
    assert config.from_json(config.Source, json.loads(json.dumps(config.to_json(source)))) == source
    for name in (*compose.rule(), *compose.reasoning("choice")):
        load(name)


def test_a_name_with_options_is_written_as_it_is_read():
    name = compose.named("overlong", max_tokens=20480, buffer=4096)
    assert name == 'overlong{"max_tokens":20480,"buffer":4096}'
    assert load(name)("", "", {"_tokens": [0] * 20480}).value == -1
    assert compose.named("format") == "format"


# -- Adapters


def trl_length(prompts, completions, answer, completion_ids=None, **kwargs):
    """As TRL's documentation has it: columns are lists, and what is not named comes as keywords."""
    assert not kwargs.keys() & {"prompt", "completion", "_tokens"}
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    ids = completion_ids or [[]] * len(texts)
    return [float(len(t) + 10 * len(a) + 100 * len(i)) for t, a, i in zip(texts, answer, ids, strict=True)]


def test_a_function_of_trl():
    reward = adapters.from_trl(trl_length)
    assert reward("2+2", "four", {"prompt": "2+2", "answer": "4", "source": "x"}) == 14.0
    assert reward("2+2", "four", {"answer": "4", "_tokens": [7, 8]}) == 214.0
    messages = [{"role": "user", "content": "2+2"}]
    seen = {}
    adapters.from_trl(lambda **given: seen.update(given) or [1])(messages, "four", {"answer": "4"})
    assert seen == {"prompts": [messages], "completions": [[{"role": "assistant", "content": "four"}]], "answer": ["4"]}
    score = adapters.from_trl(lambda prompts, completions, **_: [None])("", "", {})
    assert (score.value, score.status) == (0.0, "ok") and "does not apply" in score.why
    with pytest.raises(ValueError):
        adapters.from_trl(lambda **_: [1.0, 2.0])("", "", {})


def verl_score(data_source, solution_str, ground_truth, extra_info=None):
    right = solution_str.endswith(str(ground_truth))
    return {"score": float(right), "acc": right} if extra_info else float(right)


def test_a_function_of_verl():
    reward = adapters.from_verl(verl_score)
    assert reward("", "is 4", {"answer": 4, "source": "x"}) == 1.0 and reward("", "is 5", {"answer": 4}) == 0.0
    row = {"answer": None, "data_source": "openai/gsm8k", "reward_model": {"ground_truth": "5"}, "extra_info": {"index": 1}}
    assert reward("", "is 5", row) == 1.0
    assert adapters.from_verl(lambda data_source, **_: data_source)("", "", {**row, "source": "x"}) == "openai/gsm8k"
    assert adapters.from_verl(lambda data_source, **_: data_source)("", "", {"answer": 1, "source": "x"}) == "x"


def test_async_functions_are_awaited():
    async def trl(prompts, completions, **columns):
        await asyncio.sleep(0)
        return [0.5]

    async def verl(**_):
        return {"score": 0.25}

    assert asyncio.run(adapters.from_trl(trl)("", "", {})) == 0.5
    assert asyncio.run(adapters.from_verl(verl)("", "", {"answer": 1})) == 0.25


def test_adapted_functions_are_named_like_any_reward(tmp_path):
    (tmp_path / "theirs.py").write_text(
        "from r1jax.rewards.adapters import from_trl, from_verl\n"
        "def length(prompts, completions, **columns): return [len(c) for c in completions]\n"
        "async def slow(prompts, completions, **columns): return [0.5]\n"
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None): return solution_str == ground_truth\n"
        "trl, late, verl = from_trl(length), from_trl(slow), from_verl(compute_score)\n"
    )
    names = tuple(f"{tmp_path}/theirs.py:{f}" for f in ("trl", "late", "verl"))
    with Pool(config.Workers(count=1)) as pool:
        (scores,) = pool.score([Item("p", "abc", {"answer": "abc"}, names)])
    assert [(s.value, s.status) for s in scores.values()] == [(3.0, "ok"), (0.5, "ok"), (1.0, "ok")]
