"""Preflight stops runs that could not learn and lets the others through; the dry run shows and writes nothing."""

import contextlib
import re
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest

from r1jax import cli, config
from r1jax.config.base import GuardStop
from r1jax.data import tokenizer
from r1jax.data.sources import Mixture
from r1jax.data.template import Template
from r1jax.eval import answers as asking
from r1jax.rewards import Pool, Score
from r1jax.rewards.accuracy import accuracy
from r1jax.rewards.format import format
from r1jax.stages import evaluation, preflight
from r1jax.types import Trajectories

RIGHT, WRONG, BARE = "It is 7. </think> <answer>7</answer>", "It is 8. </think> <answer>8</answer>", "8"
BYTES = tokenizer.byte_tokenizer()


@pytest.fixture(scope="module")
def pool():
    with Pool(config.Workers(count=1)) as pool:
        yield pool


class Script:
    """Stands for the sampler: writes what ``answer(question, sample)`` returns, cut at ``cap`` characters."""

    def __init__(self, answer):
        self.answer, self.calls = answer, []

    def load(self, params):
        pass

    def generate(self, prompts, sampling, *, samples, round, ids, progress):
        self.calls.append((tuple(ids), samples, round, sampling))
        each = [(prompt, name, k) for prompt, name in zip(prompts, ids, strict=True) for k in range(samples)]
        written = [BYTES.encode(self.answer(name, k))[: sampling.max_new_tokens] for _, name, k in each]
        ended = np.array([len(w) < sampling.max_new_tokens for w in written])
        rows = [[*prompt, *w, *([1] if end else [])] for (prompt, _, _), w, end in zip(each, written, ended, strict=True)]
        width = max(map(len, rows))
        found = Trajectories(
            tokens=np.array([row + [0] * (width - len(row)) for row in rows], np.int32),
            prompt_length=np.array([len(prompt) for prompt, _, _ in each], np.int32),
            length=np.array([len(row) for row in rows], np.int32),
            loss_mask=np.ones((len(rows), width), bool),
            logprobs=np.zeros((len(rows), width), np.float32),
            finish=ended.astype(np.int8),
            prompt_id=np.array([name for _, name, _ in each], np.int32),
            sample=np.array([k for _, _, k in each], np.int32),
        )
        progress(np.arange(len(each)), found)
        return found


def work(pool, answer, *, rows=None, rewards=None, group=4, **settings):
    """The part of a workspace that preflight uses."""
    source = config.Source(name="sums", rewards=rewards or {"accuracy": 1.0, "format": 1.0})
    rows = rows or [{"prompt": f"{a}+{7 - a}=", "answer": "7", "source": "sums"} for a in range(8)]
    text = config.Text(tokenizer="bytes", template="{{ prompt }}<think>")
    stage = config.GRPO(model=config.Model(), text=text, sources=(source,), group=group, **settings)
    notes, shown = [], []
    return SimpleNamespace(
        stage=stage, mixture=Mixture([(source, rows)], 0), template=Template(text, BYTES), tokenizer=BYTES, pool=pool,
        weights={"sums": source.rewards}, sampler=Script(answer), state=SimpleNamespace(params=None), step=0,
        phase=lambda *_: contextlib.nullcontext(), load_sampler=lambda: None, notes=notes, shown=shown,
        display=SimpleNamespace(note=notes.append, sample=lambda *args: shown.append(args), advance=lambda *_: None),
    )  # fmt: skip


SHORT = 'overlong{"max_tokens":1000,"buffer":1000}'

# -- Signal


def test_a_run_with_a_signal_goes_on_and_says_what_was_seen(pool):
    w = work(pool, lambda question, k: RIGHT if k == 0 else BARE if k == 1 else WRONG)
    preflight.check(w)
    ids, samples, drawn, _ = w.sampler.calls[0]
    assert len(w.sampler.calls) == 1 and (len(ids), samples) == (16, 4)
    assert drawn not in (evaluation.ROUND, *range(100_000))
    gold, empty, seen = w.notes
    assert "16 gold answers: accuracy 1, format 1" in gold and "16 empty answers: accuracy 0, format 0" in empty
    assert "pass rate 0.25, format rate 0.75, truncated 0.00, groups with signal 16 of 16" in seen
    ((prompt, completion, scores, step),) = w.shown  # one answer is the best by both rewards
    assert completion == "<think>" + RIGHT and prompt.endswith("=<think>") and step == 0
    assert scores["accuracy"] == (1.0, "extracted '7', expected '7'")


@pytest.mark.parametrize(
    ("answer", "settings", "cause"),
    [
        (lambda q, k: "9" * 50, {"sampling": config.Sampling(max_new_tokens=20)}, "cut at 20 tokens and none keeps the format"),
        (lambda q, k: WRONG, {}, "too hard to start from"),
        (lambda q, k: BARE, {}, "none of 256 answers keeps the format and none is right"),
        (lambda q, k: BARE, {"rewards": {"accuracy": 1.0}}, "too hard to start from"),
        (lambda q, k: RIGHT, {}, "all 256 answers are right already"),
        (lambda q, k: RIGHT if q % 2 else WRONG, {}, "all alike; raise sampling.temperature"),
    ],
)  # fmt: skip
def test_no_signal_stops_the_run_with_the_likely_cause(pool, answer, settings, cause):
    w = work(pool, answer, **settings)
    with pytest.raises(GuardStop) as stop:
        preflight.check(w)
    message = str(stop.value)
    assert cause in message and "--no-preflight" in message and "\n" not in message
    assert [len(ids) * samples for ids, samples, _, _ in w.sampler.calls] == [64, 256]
    assert "groups with signal 0 of 64" in w.notes[-1]


def test_256_more_are_asked_before_judging(pool):
    w = work(pool, lambda question, k: RIGHT if question == 50 and k == 2 else WRONG)
    preflight.check(w)
    assert not set(w.sampler.calls[0][0]) & set(w.sampler.calls[1][0])
    assert "groups with signal 1 of 64" in w.notes[-1]


def test_groups_larger_than_64_and_a_cap_that_the_schedule_sets(pool):
    settings = {"length_schedule": ((0, 60), (5, 90))}
    w = work(pool, lambda question, k: RIGHT if k else WRONG, group=100, **settings)
    preflight.check(w)
    ((ids, samples, _, sampling),) = w.sampler.calls
    assert (len(ids), samples, sampling.max_new_tokens) == (1, 100, 60)


def test_failed_scores_are_named_as_the_cause(pool, tmp_path):
    lines = "def f(prompt, completion, row):", "    if '8' in completion:", "        raise OSError('no disk')", "    return 0"
    (tmp_path / "mine.py").write_text("\n".join(lines))
    w = work(pool, lambda question, k: WRONG, rewards={"accuracy": 1.0, f"{tmp_path}/mine.py:f": 1.0})
    with pytest.raises(GuardStop, match="256 scores of 256 answers failed, the first: reward .*mine.py:f error: OSError: no"):
        preflight.check(w)


def test_answers_that_are_mostly_cut_are_a_warning(pool):
    w = work(pool, lambda q, k: RIGHT if k == 0 else "9" * 200, sampling=config.Sampling(max_new_tokens=60))
    preflight.check(w)
    assert w.notes[-1] == "preflight: WARNING: 75% of the answers were cut at 60 tokens; raise sampling.max_new_tokens"
    w = work(pool, lambda q, k: RIGHT if k < 2 else "9" * 200, sampling=config.Sampling(max_new_tokens=60))
    preflight.check(w)
    assert "cut at" not in w.notes[-1]


# -- Rewards


def test_a_reward_that_fails_on_every_gold_answer_stops_the_run(pool, tmp_path):
    (tmp_path / "mine.py").write_text("def f(prompt, completion, row):\n    return row['anwser']\n")
    w = work(pool, lambda question, k: RIGHT, rewards={"accuracy": 1.0, f"{tmp_path}/mine.py:f": 1.0})
    with pytest.raises(GuardStop, match="mine.py:f fails on all of 16 gold answers, the first error: KeyError: 'anwser'"):
        preflight.check(w)
    assert not w.sampler.calls


@pytest.mark.parametrize("prefill", ["", "<think>", "<think>\n"])
def test_the_gold_answer_is_right_and_keeps_the_format(prefill):
    row = {"prompt": "?", "answer": "x^2"}
    gold = preflight.gold_answer(row, prefill)
    assert gold.startswith(prefill) and accuracy("?", gold, row).value == format("?", gold, row).value == 1
    own = {**row, "gold": "<think>so</think><answer>x*x</answer>"}
    assert preflight.gold_answer(own, prefill) == own["gold"]


def test_the_gold_answer_is_right_by_the_other_rewards_of_correctness(pool):
    rows = [
        {"answer": "B", "options": ["x", "y"]},
        {"answer": 1, "options": ["x", "y"]},
        {"answer": ["2", "two"]},
        {"answer": 3.5},
    ]
    rewards = ("choice", "choice", 'exact{"ignore_case":true}', "numeric")
    for row, reward in zip(rows, rewards, strict=True):
        right = {"prompt": "?", "source": "sums", **row}
        preflight.check(work(pool, lambda q, k: RIGHT if k else BARE, rows=[right], rewards={reward: 1.0, SHORT: 0.1}))
        wrong = work(pool, lambda q, k: RIGHT, rows=[{**right, "gold": "<think>no</think> zero"}], rewards={reward: 1.0})
        with pytest.raises(GuardStop, match=f"reward {re.escape(reward)} gives 0 to the gold answer '<think>no"):
            preflight.check(wrong)


def test_gold_and_sampled_answers_have_their_tokens(pool):
    w = work(pool, lambda question, k: RIGHT if k else BARE, rewards={"accuracy": 1.0, SHORT: 1.0})
    preflight.check(w)
    gold = BYTES.encode(preflight.gold_answer({"answer": "7"}, "<think>").removeprefix("<think>"))
    assert f"accuracy 1, {SHORT} {-len(gold) / 1000:.3g}" in w.notes[0] and f"accuracy 0, {SHORT} 0" in w.notes[1]
    (*_, (_, _, scores, _)) = w.shown
    assert scores[SHORT][1] == f"{len(BYTES.encode(BARE)) + 1} tokens"  # with its end token, without the prefill


def test_a_gold_answer_after_an_empty_thought_and_one_that_there_is_not():
    assert preflight.gold_answer({"answer": 3}, "<think>\n\n</think>\n\n") == "<think>\n\n</think>\n\n<answer>3</answer>"
    assert preflight.gold_answer({"answer": None}, "") is None


def test_a_wrong_gold_answer_names_row_reward_and_reason(pool):
    rows = [{"prompt": "3+4=", "answer": "7", "source": "sums", "gold": "<think>.</think> <answer>8</answer>"}]
    w = work(pool, lambda question, k: RIGHT, rows=rows)
    with pytest.raises(GuardStop) as stop:
        preflight.check(w)
    message = str(stop.value)
    assert "reward accuracy gives 0 to the gold answer" in message and "extracted '8', expected '7'" in message
    assert "row 0, source 'sums', prompt '3+4='" in message and "--no-preflight" in message
    assert not w.sampler.calls


def test_an_empty_answer_that_earns_something_stops_the_run():
    question = asking.Question({"prompt": "?", "answer": "", "source": "sums"}, [1], "", 3)
    with pytest.raises(GuardStop, match="reward accuracy gives 1 to the empty answer '' of row 3.*must earn nothing"):
        preflight.judge(question, "", {"accuracy": Score(1.0)}, right=False)
    with pytest.raises(GuardStop, match=r"reward accuracy gives 0 \(timeout\) to the empty answer"):
        preflight.judge(question, "", {"accuracy": Score(0.0, "timeout", "slow")}, right=False)
    preflight.judge(question, "", {"accuracy": Score(0.0), "mine": Score(5.0)}, right=False)


def test_rewards_of_one_s_own_are_shown_and_not_judged(pool, tmp_path):
    (tmp_path / "own.py").write_text("def f(prompt, completion, row):\n    return 0.5\n")
    w = work(pool, lambda question, k: RIGHT if k else WRONG, rewards={"accuracy": 1.0, f"{tmp_path}/own.py:f": 1.0})
    preflight.check(w)
    assert "own.py:f 0.5" in w.notes[0] and "own.py:f 0.5" in w.notes[1]


def test_rows_without_an_answer_have_no_gold_to_check(pool):
    rows = [{"prompt": "?", "answer": None, "source": "sums"}]
    w = work(pool, lambda question, k: RIGHT if k else BARE, rows=rows, rewards={"format": 1.0})
    preflight.check(w)
    assert "0 gold answers: none, the rows have no answer" in w.notes[0]


# -- Dry run

PIPELINE = '''
    """SFT, then GRPO, on one small layer."""
    from dataclasses import dataclass, field
    from r1jax.config import GQA, GRPO, SFT, Engine, Eval, Model, Pipeline, Sampling, Source, Text, Workers

    ATTENTION = GQA(n_heads=2, n_kv_heads=1, head_dim=8)
    COMMON = dict(steps=1, micro_batch=8, sequence_length=64, eval=Eval(every=0), workers=Workers(count=1))

    @dataclass(frozen=True)
    class Two(Pipeline):
        warm: SFT = field(default_factory=lambda: SFT(
            model=Model(vocab_size=264, d_model=16, d_ff=16, attention=ATTENTION), batch=16,
            text=Text(tokenizer="bytes", template="Sum: {{ prompt }}"), **COMMON,
        ))
        zero: GRPO = field(default_factory=lambda: GRPO(
            init="warm", questions=2, group=4, minibatches=1,
            sampling=Sampling(max_new_tokens=4), engine=Engine(slots=8, max_prompt_tokens=16), **COMMON,
        ))

    def config():
        return Two()
    '''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "two.py").write_text(textwrap.dedent(PIPELINE))
    return tmp_path


def test_a_dry_run_shows_every_stage_and_writes_nothing(folder, capsys):
    assert cli.main(["train", "two.py", "--dry-run", "--run-dir", "run"]) == 0
    out = capsys.readouterr().out
    warm, zero = out.split("zero: memory per device")
    assert "optimizer" in warm and "<answer>" in warm and "Sum: " in warm and "<|end|>" in warm
    assert "sampler's weights" in zero and "  | Sum: " in zero  # the text of the stage before
    for part in (warm, zero):
        assert "accuracy 1 (extracted " in part and "format 1" in part
    assert [path.name for path in folder.iterdir()] == ["two.py"]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--zero.micro-batch", "3"), "micro_batch is 3"),
        (("--zero.engine.max-prompt-tokens", "4"), "prompts are longer than engine.max_prompt_tokens 4"),
        (("--warm.sequence-length", "9"), "raise sequence_length"),
        (("--zero.sources.0.rewards.format", "0.5", "--zero.sources.0.path", "r1jax.data.arithmetic:row"), "no function 'row'"),
    ],
)  # fmt: skip
def test_a_dry_run_finds_mistakes_of_any_stage(folder, capsys, option, said):
    assert cli.main(["train", "two.py", "--dry-run", *option]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
