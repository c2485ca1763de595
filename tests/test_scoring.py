"""Answers are scored while others are sampled, by every process its part; rewards that fail stop the run and leave samples."""

import dataclasses
import json
import threading
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny

from r1jax import config, processes
from r1jax.config.base import GuardStop
from r1jax.data import tokenizer
from r1jax.eval import answers as asking
from r1jax.observe.samples import SamplesWriter
from r1jax.rewards import Pool, Score
from r1jax.stages import evaluation, grpo
from r1jax.types import Trajectories

BYTES = tokenizer.byte_tokenizer()
REWARDS = """
import os, time
def number(prompt, completion, row): return int(completion)
def told(prompt, completion, row):
    open(os.path.join(row["folder"], completion), "w").close()
    return 1.0
def moody(prompt, completion, row):
    if completion == "0": raise OSError("no disk")
    if completion == "1": return float("nan")
    if completion == "2": time.sleep(60)
    return 1.0
"""


@pytest.fixture
def mine(tmp_path):
    """The import path, up to the function's name, of a file of rewards."""
    (tmp_path / "mine.py").write_text(REWARDS)
    return f"{tmp_path}/mine.py:"


def written(texts):
    """Answers to empty prompts."""
    rows = [[2, *BYTES.encode(text)] for text in texts]
    width, count = max(map(len, rows)), len(rows)
    return Trajectories(
        tokens=np.array([row + [0] * (width - len(row)) for row in rows], np.int32),
        prompt_length=np.ones(count, np.int32),
        length=np.array([len(row) for row in rows], np.int32),
        loss_mask=np.ones((count, width), bool),
        logprobs=np.zeros((count, width), np.float32),
        finish=np.zeros(count, np.int8),
        prompt_id=np.arange(count, dtype=np.int32),
        sample=np.zeros(count, np.int32),
    )


class Counting:
    """Stands for the sampler: answer i is the text of i, in passes of ``width``."""

    def __init__(self, width, between=lambda: None):
        self.width, self.between = width, between

    def load(self, params):
        pass

    def generate(self, prompts, sampling, *, samples, round, ids, progress):
        count = len(prompts) * samples
        for first in range(0, count, self.width):
            rows = np.arange(first, min(first + self.width, count))[::-1]  # whichever ends first
            progress(rows, written([str(i) for i in rows]))
            self.between()
        return written([str(i) for i in range(count)])


def questions(count, **fields):
    return [asking.Question({"prompt": "?", "answer": i, "source": "s", **fields}, [2], "", i) for i in range(count)]


def sample(pool, reward, asked, sampler):
    return asking.sample(
        asked, sampler=sampler, pool=pool, tokenizer=BYTES, sampling=config.Sampling(), samples=1, round=0,
        weights={"s": {reward: 0.5}},
    )  # fmt: skip


def test_answers_are_scored_while_others_are_sampled(mine, tmp_path):
    folder, waited = tmp_path / "told", []
    folder.mkdir()

    def wait_for_scores():
        """The next pass begins when the reward has seen all answers so far."""
        waited.append(len(waited) + 1)
        deadline = threading.Event()
        for _ in range(600):
            if len(list(folder.iterdir())) >= min(3 * len(waited), 7):
                return
            deadline.wait(0.05)
        pytest.fail("no answer was scored while others were to be sampled")

    with Pool(config.Workers(count=1, timeout=30.0)) as pool:
        found = sample(pool, mine + "told", questions(7, folder=str(folder)), Counting(3, wait_for_scores)).scored()
    assert len(waited) == 3 and found.completions == [str(i) for i in range(7)]
    assert found.rewards.tolist() == [0.5] * 7


def in_processes(monkeypatch, count, work):
    """What ``work(k)`` returns or raises in each of ``count`` processes, played by threads."""
    me, boards, barrier = threading.local(), [None] * count, threading.Barrier(count, timeout=60)

    def allgather(name, value, seconds=0):
        boards[me.rank] = np.asarray(value)
        barrier.wait()
        found = np.stack(boards)
        barrier.wait()
        return found

    monkeypatch.setattr(jax, "process_count", lambda: count)
    monkeypatch.setattr(jax, "process_index", lambda: me.rank)
    monkeypatch.setattr(processes, "gather", allgather)
    results = [None] * count

    def run(rank):
        me.rank = rank
        try:
            results[rank] = work(rank)
        except Exception as e:
            results[rank] = e

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_every_process_scores_its_part_and_has_all(mine, monkeypatch):
    with Pool(config.Workers(count=1)) as pool:
        scored, score = [], pool.submit
        monkeypatch.setattr(pool, "submit", lambda items: scored.extend(item.completion for item in items) or score(items))
        found = in_processes(monkeypatch, 3, lambda k: sample(pool, mine + "number", questions(11), Counting(4)).scored())
    for answers in found:
        assert [s[mine + "number"].value for s in answers.scores] == list(range(11))
    assert sorted(scored, key=int) == [str(i) for i in range(11)]


@pytest.mark.parametrize("when", ["submit", "later"])
def test_a_pool_that_breaks_in_one_process_stops_all(mine, monkeypatch, when):
    """Without a word from it, the others would wait for its scores for ever."""

    def work(rank):
        with Pool(config.Workers(count=1)) as pool:
            if rank == 1 and when == "submit":
                pool.close()
            sampled = sample(pool, mine + "number", questions(11), Counting(4))
            if rank == 1 and when == "later":
                sampled.scoring._parts[1].result()
                sampled.scoring._parts[1] = broken()
            return sampled.scored()

    for error in in_processes(monkeypatch, 3, work):
        assert isinstance(error, ValueError) and "process 1 could not score its answers: " in str(error)


def broken():
    future = asking.Future()
    future.set_exception(OSError("no processes left"))
    return future


def test_failures_are_counted_by_kind(mine):
    with Pool(config.Workers(count=1, timeout=1.0)) as pool:
        found = sample(pool, mine + "moody", questions(5), Counting(5)).scored()
    found = dataclasses.replace(found, scores=[*found.scores[:4], {mine + "moody": Score(0.0, "error")}])
    values = asking.reward_metrics(found)
    errors = {key.rpartition("/")[2]: value for key, value in values.items() if "/errors/" in key}
    assert errors == {"error": 2.0, "invalid": 1.0, "timeout": 1.0}
    assert values[f"reward/{mine}moody"] == pytest.approx(1 / 5)


@pytest.mark.parametrize("where", ["round", "evaluation"])
@pytest.mark.parametrize(("share", "stops"), [(0.19, True), (0.3, False)])
def test_rewards_that_fail_stop_the_run_with_samples_saved(mine, tmp_path, where, share, stops):
    reward = mine + "moody"
    stage = config.GRPO(
        model=config.Model(), group=2, sources=(config.Source(name="s", rewards={reward: 1.0}),),
        workers=config.Workers(count=1, timeout=1.0, max_error_share=share),
    )  # fmt: skip
    rows = [question.row for question in questions(5)]
    with Pool(stage.workers) as pool, SamplesWriter(tmp_path) as samples:
        work = SimpleNamespace(
            stage=stage, pool=pool, sampler=Counting(4), tokenizer=BYTES, weights={"s": {reward: 1.0}}, step=6,
            state=SimpleNamespace(params=None), cursor=SimpleNamespace(round=0), samples=samples, held_out=rows,
            run=SimpleNamespace(path=tmp_path), display=SimpleNamespace(advance=lambda *_: None), phase=phase,
            load_sampler=lambda: None, template=SimpleNamespace(encode=lambda prompt: ([2], "")), model=tiny.MOE,
            count=lambda flops: None,
        )  # fmt: skip

        def go():
            return grpo.roll_out(work, questions(5)) if where == "round" else evaluation.evaluate(work, samples=2)

        if not stops:
            go()
            assert not (tmp_path / "samples.jsonl").read_text()
            return
        with pytest.raises(GuardStop) as stop:
            go()
    message = str(stop.value)
    assert f"3 of 10 scores failed (1 {reward} error, 1 {reward} invalid, 1 {reward} timeout)" in message
    assert f"the first: reward {reward} error: OSError: no disk" in message and "\n" not in message
    assert f"{tmp_path}/samples.jsonl ends with such answers" in message
    kept = [json.loads(line) for line in Path(tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(row["step"], row["completion"], row["rewards"][reward]["status"]) for row in kept] == [
        (7, "0", "error"), (7, "1", "invalid"), (7, "2", "timeout"),
    ]  # fmt: skip


class phase:
    """Stands for a phase of the display."""

    tokens_per_s = 0.0

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass
