"""The order of rows is a function of sources, seed and index: where a run was interrupted, and in how many processes, leaves no
trace in it."""

from types import SimpleNamespace

import jax
import numpy as np
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax import config
from r1jax.config import Source, Text
from r1jax.data import sft
from r1jax.data.sources import Mixture
from r1jax.data.template import Template
from r1jax.data.tokenizer import byte_tokenizer
from r1jax.eval import answers as asking
from r1jax.eval.answers import Answers
from r1jax.stages import grpo
from r1jax.stages.workspace import Cursor, Workspace
from r1jax.types import Trajectories

BYTES = byte_tokenizer()
TEMPLATE = Template(Text(template="none"), BYTES)
CAP = 4  # bytes of a prompt


def rows(name, count, long_every):
    """Of every ``long_every`` rows one is too long."""
    lengths = [9 if long_every and i % long_every == 0 else 1 + i % CAP for i in range(count)]
    return [{"prompt": "p" * n, "answer": f"{name}{i}", "completion": "", "source": name} for i, n in enumerate(lengths)]


WEIGHTS = (1.0, 0.3, 2.5)


def mixed(counts, long_every, seed):
    names = [f"s{i}" for i in range(len(counts))]
    pairs = zip(names, WEIGHTS, counts, strict=False)
    return Mixture([(Source(name=name, weight=w), rows(name, count, long_every)) for name, w, count in pairs], seed)


counts = st.lists(st.integers(15, 40), min_size=1, max_size=3)  # grain shuffles fewer slowly
mixtures = st.builds(mixed, counts, st.sampled_from([0, 2, 5]), st.integers(0, 3))


@settings(max_examples=15, deadline=None)
@given(mixtures, st.lists(st.integers(1, 15), min_size=1, max_size=4))
def test_taken_in_any_parts_the_rows_are_the_same(mixture, parts):
    total = sum(parts)
    whole, end, left_out = asking.take(mixture, 0, total, TEMPLATE, CAP)
    cursor, taken, left = 0, [], 0
    for part in parts:  # as after a resume: nothing is kept but the integers
        questions, cursor, more = asking.take(mixture, cursor, part, TEMPLATE, CAP)
        taken += questions
        left += more
    assert taken == whole and (cursor, left) == (end, left_out) and end == total + left_out
    assert [q.row for q in whole] == [row for i in range(end) if len((row := mixture[i])["prompt"]) <= CAP]
    assert len({q.name for q in whole}) == total  # a row that comes again is another question
    examples, sft_end, sft_left = sft.take(mixture, 0, total, TEMPLATE, BYTES, CAP + 1)
    assert [len(e.tokens) - 1 for e in examples] == [len(q.ids) for q in whole] and (sft_end, sft_left) == (end, left_out)


@settings(max_examples=15, deadline=None)
@given(counts, st.integers(0, 60))
def test_epochs_count_the_rows_that_came(counts, index):
    mixture = mixed(counts, 0, 0)
    came, epochs = [mixture[i]["source"] for i in range(index)], mixture.epochs(index)
    assert len(epochs) == len(counts)
    for i, count in enumerate(counts):
        assert abs(epochs[f"s{i}"] * count - came.count(f"s{i}")) <= len(counts) - 1 + 1e-9


# -- Dynamic sampling


def work(mixture, dynamic_sampling, cursor):
    stage = tiny.grpo(questions=2, minibatches=2, group=2, dynamic_sampling=dynamic_sampling)
    return SimpleNamespace(
        stage=stage, model=stage.model, cursor=cursor, mixture=mixture, template=TEMPLATE, replaced=0, step=0,
        count=lambda flops: None,
    )  # fmt: skip


def roll_out(mixture, signal):
    """Stands for sampling: two answers to a question, which earn 0 and 1 where ``signal(question)``, else the same."""

    def answered(work, asked):
        each = [q for q in asked for _ in range(2)]
        rewards = np.array([i % 2 if signal(q) else 0.5 for i, q in enumerate(each)], np.float32)
        n, width = len(each), max(len(q.ids) for q in each) + 1
        names = np.array([q.name for q in each], np.int32)
        tokens = np.array([(q.ids + [7] + [0] * width)[:width] for q in each], np.int32)
        length = np.array([len(q.ids) + 1 for q in each], np.int32)
        t = Trajectories(
            tokens, length - 1, length, tokens == 7, np.where(tokens == 7, -1.0, 0.0), np.ones(n, np.int8), names,
            np.arange(n, dtype=np.int32) % 2,
        )  # fmt: skip
        return Answers(each, t, [f"{q.name}/{i % 2}" for i, q in enumerate(each)], [{} for _ in each], rewards)

    return answered


@settings(max_examples=15, deadline=None)
@given(mixtures, st.integers(0, 3), st.integers(1, 4), st.integers(0, 3))
def test_dynamic_sampling_asks_on_and_resumes_where_it_was(mixture, most, every, stopped_after):
    """A question has a signal where its index divides by ``every``."""
    original, grpo.roll_out = grpo.roll_out, roll_out(mixture, lambda q: q.name % every == 0)
    try:
        rounds, cursors = [], [Cursor()]
        for _ in range(4):
            w = work(mixture, most, Cursor(**vars(cursors[-1])))
            rounds.append((grpo.next_answers(w), w.replaced))
            cursors.append(w.cursor)
        resumed = work(mixture, most, Cursor(**vars(cursors[stopped_after])))
        again = grpo.next_answers(resumed)
    finally:
        grpo.roll_out = original
    assert again.completions == rounds[stopped_after][0].completions and resumed.cursor == cursors[stopped_after + 1]
    asked = []
    for (answers, replaced), cursor, after in zip(rounds, cursors[:-1], cursors[1:], strict=True):
        groups = [answers.questions[i] for i in range(0, len(answers.questions), 2)]
        asked += [q.name for q in groups]
        assert len(groups) == 4 and len(answers.rewards) == 8
        # What is kept of the fields belongs together, and nobody is asked twice.
        for i, q in enumerate(answers.questions):
            assert answers.completions[i] == f"{q.name}/{i % 2}"
            t = jax.tree.map(lambda x: x[i], answers.trajectories)  # noqa: B023
            assert (t.prompt_id, t.sample, t.length) == (q.name, i % 2, len(q.ids) + 1)
            assert t.tokens[: t.length].tolist() == [*q.ids, 7] and not t.tokens[t.length :].any()
        fitting = [i for i in range(cursor.row, after.row) if len(mixture[i]["prompt"]) <= CAP]
        assert len(fitting) == 4 + replaced and after.row - cursor.row - len(fitting) == after.left_out - cursor.left_out
        expected, rest = fitting[:4], iter(fitting[4:])
        for _ in range(most):
            expected = [next(rest) if name % every else name for name in expected]
        assert [q.name for q in groups] == expected and not list(rest)
    assert len(set(asked)) == len(asked)


def test_how_often_rows_have_come_is_among_the_metrics():
    mixture = Mixture([(Source(name="a"), rows("a", 10, 0)), (Source(name="b", weight=3.0), rows("b", 5, 0))], 0)
    found = Workspace.data_metrics(SimpleNamespace(mixture=mixture, cursor=Cursor(row=40, left_out=3)))
    assert found == {"data/left_out": 3.0, "data/epochs/a": 1.0, "data/epochs/b": 6.0}


def test_dynamic_sampling_is_off_as_in_r1():
    assert config.GRPO(model=tiny.MOE, sequence_length=600).dynamic_sampling == 0
