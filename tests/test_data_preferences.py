"""Judged answers: how they are read, which pairs are taken, how they lie in a batch, and how a judge makes pairs."""

import asyncio
import json

import numpy as np
import pytest
import tiny
from test_rewards_judge import server  # noqa: F401 (a stand-in for an endpoint)

from r1jax import cli
from r1jax.config import ConfigError, Source, Text
from r1jax.data import preferences, two_scripts
from r1jax.data.sources import Mixture
from r1jax.data.template import Template
from r1jax.data.tokenizer import byte_tokenizer
from r1jax.rewards.compare import TEMPLATE, VERDICTS
from r1jax.rewards.compose import named
from r1jax.rewards.load import load

BYTES = byte_tokenizer()
PLAIN = Template(Text(template="{{ prompt }}"), BYTES)


def mixture(rows):
    source = Source(name="x", rewards={})
    return Mixture([(source, [row | {"source": "x", "answer": None} for row in rows])], seed=0)


def pair(chosen, rejected, **more):
    return {"prompt": "p", "chosen": "a" * chosen, "rejected": "b" * rejected} | more


# -- How an answer is read


@pytest.mark.parametrize(
    ("reads", "completion", "text"),
    [
        ("summary", "<think>\nso</think>\n\nok", "<｜User｜>hi<｜Assistant｜>ok<|end|>"),
        ("response", "<think>\nso</think>ok", "<｜User｜>hi<｜Assistant｜><think>\nso</think>ok<|end|>"),
        ("summary", "<think>\nnever", "<｜User｜>hi<｜Assistant｜><|end|>"),
        ("summary", "ok", "<｜User｜>hi<｜Assistant｜>ok<|end|>"),
    ],
)
def test_the_thought_is_read_or_left_out_and_the_prefill_is_the_answers(reads, completion, text):
    tokens, words = preferences.encode("hi", completion, reads, Template(Text(template="r1"), BYTES), BYTES)
    assert BYTES.decode(tokens) == text
    assert words == len(tokens) - len(BYTES.encode("<｜User｜>hi<｜Assistant｜>"))


# -- Which pairs are taken


@pytest.mark.parametrize(
    ("words", "more", "kept"),
    [
        ((100, 100), (12, 10), True),  # 2 apart, of which 0.02 * 111 = 2.22 are allowed
        ((100, 100), (13, 10), False),
        ((110, 100), (10, 13), True),  # brings them closer
        ((110, 100), (10, 10), False),  # no closer, and 10 is more than 2.3
        ((0, 0), (0, 0), True),
        ((100, 110), (11, 10), True),
    ],
)
def test_a_pair_may_not_take_the_mean_lengths_apart(words, more, kept):
    assert preferences.keeps_balance(words, more, 0.02) == kept
    assert preferences.keeps_balance(words, more, 0.0)


def test_lengths_are_balanced_over_pairs_whose_chosen_answer_is_mostly_longer():
    rng = np.random.default_rng(0)
    sizes = [(int(rng.integers(4, 12)) + 3 * int(rng.random() < 0.7), int(rng.integers(4, 12))) for _ in range(3000)]
    rows, stage = mixture([pair(*s) for s in sizes]), tiny.judge(batch=50)
    words, row, dropped = (0, 0), 0, 0
    for _ in range(10):
        taken = preferences.take(rows, row, words, stage, PLAIN, BYTES)
        words, row, dropped = taken.words, taken.row, dropped + taken.unbalanced
        assert len(taken.found) == 50 and taken.left_out == 0
    assert sum(sum(one.words) for one in taken.found) > 0 and row == 500 + dropped
    assert abs(words[0] - words[1]) <= 0.02 * sum(words) / 2 + 10
    free = preferences.take(rows, 0, (0, 0), tiny.judge(batch=500, length_balance=0.0), PLAIN, BYTES)
    assert free.row == 500 and free.words[0] > 1.15 * free.words[1]


@pytest.mark.parametrize(
    ("stage", "rows", "said"),
    [
        (tiny.judge(), [pair(9, 3)], "1000 rows one after the other are left out: the chosen answer of the last is the longer"),
        (tiny.judge(), [pair(40, 30)], "longer than sequence_length 32, the last 74; raise it"),
        (tiny.judge(), [pair(3, 3, margin="big")], "'margin' is 'big'; by how much 'chosen' is better is a number >= 0"),
        (tiny.judge(), [{"prompt": "p", "completion": "c", "label": 1}], "lacks 'chosen' or 'rejected'"),
        (tiny.judge(form="pointwise"), [pair(3, 3)], "lacks 'completion' or 'label'"),
        (tiny.judge(form="pointwise"), [{"prompt": "p", "completion": "c", "label": 2}], "'label' is 2; it is 1 for a good"),
    ],
)
def test_rows_that_cannot_be_trained_on(stage, rows, said):
    with pytest.raises(ConfigError, match=said):
        preferences.take(mixture(rows), 0, (0, 0), stage, PLAIN, BYTES)


# -- A batch


@pytest.mark.parametrize("form", ["pairwise", "pointwise"])
def test_every_answer_lies_whole_in_a_row_and_its_end_is_read(form):
    """Answers of many lengths, over 2 devices and micro-batches that are not full."""
    rng = np.random.default_rng(1)
    stage = tiny.judge(form=form, batch=12, micro_batch=4, sequence_length=64, length_balance=0.0)
    sizes = rng.integers(1, 24, (12, 2))
    rows = [pair(*map(int, s), margin=float(i)) for i, s in enumerate(sizes)]
    if form == "pointwise":
        rows = [{"prompt": "p", "completion": "c" * int(s), "label": i % 2} for i, (s, _) in enumerate(sizes)]
    found = [preferences.judged(row | {"source": "x"}, stage, PLAIN, BYTES) for row in rows]
    batch, count = preferences.batch_of(found, stage, ways=2)
    assert batch.tokens.shape == (3, 4, 64) and not batch.tokens[count:].any()
    seen = []
    for m, b, t in np.argwhere(batch.mask):
        ends = [t] if form == "pointwise" else [t, batch.against[m, b, t]]
        texts = []
        for end in ends:
            here = batch.segments[m, b] == batch.segments[m, b, end]
            assert np.flatnonzero(here)[-1] == end and batch.positions[m, b][here].tolist() == list(range(here.sum()))
            texts.append(BYTES.decode(batch.tokens[m, b][here]))
        seen.append((texts, float(batch.targets[m, b, t])))
    names = ("chosen", "rejected") if form == "pairwise" else ("completion",)
    expected = [([f"p{r[n]}<|end|>" for n in names], float(r["margin" if form == "pairwise" else "label"])) for r in rows]
    assert sorted(seen) == sorted(expected)


# -- Pairs that a judge makes


def ask(tmp_path, rows, judge, *more):
    data, out = tmp_path / "answers.jsonl", tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["data", "pairs", "--data", str(data), "--judge", judge, "--out", str(out), "--workers.count", "1"]
    return cli.main([*command, *more]), out


def test_verdicts_in_both_orders_are_averaged_and_near_ones_dropped(tmp_path, capsys):
    """The judge prefers what has more x, and what stands first by 1."""
    judge = tmp_path / "judges.py"
    judge.write_text("def first(p, c, row):\n    return 1.0 + min(2, max(-2, c.count('x') - row['other'].count('x')))\n")
    answers = {"p": ["x", "xxx", "x", "xxx"], "q": ["xx", "xxx"], "r": ["x", "x"], "s": ["xxxx", "?"]}
    rows = [{"prompt": p, "completion": c, "answer": "7", "sample": i} for p, cs in answers.items() for i, c in enumerate(cs)]
    code, out = ask(tmp_path, rows, f"{judge}:first")
    assert code == 0
    made = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["prompt"], r["chosen"], r["rejected"], r["margin"], r["answer"]) for r in made] == [
        ("p", "xxx", "x", 2.0, "7"), ("p", "xxx", "x", 2.0, "7"), ("s", "xxxx", "?", 2.0, "7")
    ]  # fmt: skip
    assert made[0]["provenance"] == {"judge": f"{judge}:first", "verdicts": [1.0, 3.0, 1.0, 3.0]} and "sample" not in made[0]
    report = [json.loads(line) for line in (tmp_path / "pairs.report.jsonl").read_text().splitlines()]
    assert report == [{"prompt": "q", "dropped": "within 1", "why": "verdicts [0.0, -2.0, 0.0, -2.0]"}]
    summary = json.loads((tmp_path / "pairs.summary.json").read_text())
    assert summary["pairs"] == 4 and summary["kept"] == 3 and summary["dropped"] == {"within 1": 1}
    assert "4 pairs, 3 kept" in capsys.readouterr().err
    assert ask(tmp_path, rows[:1], f"{judge}:first")[0] == 2
    assert "no two different answers to one prompt" in capsys.readouterr().err


def test_a_model_compares_two_answers(server, tmp_path):  # noqa: F811
    replies = {"[[B>>A]] no, [[A>B]]": 1.0} | {f"so [[ {said} ]]": value for said, value in VERDICTS.items()}
    for i, (reply, value) in enumerate(replies.items()):
        server.say = lambda body, reply=reply: reply
        compare = load(named("compare", url=server.url, model="m", cache=str(tmp_path)))
        score = asyncio.run(compare("q", "<think>t</think>first", {"other": "<think>u</think>second {answer}", "query": i}))
        assert (score.value, score.status) == (value, "ok"), reply
    body = server.requests[-1][2]
    assert body["seed"] == len(replies) - 1 and body["temperature"] == 1
    said = body["messages"][0]["content"]
    assert said == TEMPLATE.replace("{question}", "q").replace("{answer}", "first").replace("{other}", "second {answer}")
    server.say = lambda body: "neither"
    score = asyncio.run(compare("q", "a", {"other": "b", "query": 99}))
    assert score.status == "invalid" and "no verdict such as [[A>B]]" in score.why


# -- The tiny pipeline's rows


def test_the_tiny_pipelines_judged_rows_are_what_they_say():
    for split in ("train", "test"):
        for i in range(100):
            row = two_scripts.preferences(split)[i]
            language, n = row["prompt"].split()
            assert row["chosen"] == two_scripts.in_language(int(n), language) != row["rejected"]
            assert (int(n) % 10 == 7) == (split == "test")
            row = two_scripts.labels(split)[i]
            both = "so " in row["completion"] and "则" in row["completion"]
            other = ("则" if row["prompt"][:2] == "en" else "so ") in row["completion"]
            assert row["label"] == (not other) and (not both or row["label"] == 0)
    assert 400 < sum(two_scripts.labels("train")[i]["label"] for i in range(1000)) < 600
