"""A stage that makes rows on its own: its judge, the rows that join, and a model that writes answers again."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from pathlib import Path

import pytest
import tiny
from test_rewards_judge import server  # noqa: F401 (a stand-in for an endpoint)

from r1jax import config
from r1jax.config.base import GuardStop
from r1jax.stages import pipeline
from r1jax.stages.rewriting import TEMPLATE, asked_for, turn_in

REWARDS = '''
def long(prompt, completion, row):
    """What a judge might say: deterministic, and never asked about an answer that is dropped anyway."""
    return float(len(completion) > 3)
'''


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model that answers anything."""
    path = tmp_path_factory.mktemp("model") / "run"
    assert pipeline.train(tiny.sft(model=tiny.DENSE, steps=1), name="tiny", run_dir=str(path)) == 0
    return path


def stage(model: Path, **changes) -> config.RejectionSampling:
    return tiny.rejection(init=str(model), per_prompt=4, **changes)


def make(settings: config.RejectionSampling, path: Path) -> list[dict]:
    assert pipeline.train(settings, name="rows", run_dir=str(path)) == 0
    return [json.loads(line) for line in (path / "rows.jsonl").read_text().splitlines()]


def test_the_judge_is_asked_about_the_others_alone_and_rows_join(model, tmp_path):
    (tmp_path / "judging.py").write_text(REWARDS)
    judge = f"{tmp_path}/judging.py:long"
    join = config.Source(path=f"{tiny.FILE}:rows", name="general", limit=9, rewards={})
    rows = make(stage(model, judge={judge: 1.0}, join=(join,), rows={"general": 5}), tmp_path / "run")
    answers = tiny.samples(tmp_path / "run")
    dropped = {a["dropped"] for a in answers}
    assert f"{judge} below 1" in dropped and len(dropped) > 2
    for answer in answers:
        asked = answer["dropped"] in ("", f"{judge} below 1")
        assert (judge in answer["rewards"]) == asked
        assert not asked or (answer["dropped"] == "") == (len(answer["completion"]) > 3)
    sampled, joined = rows[:-5], rows[-5:]
    assert sampled and all(row["source"] == "tiny" and row["provenance"]["rewards"][judge] == 1 for row in sampled)
    given = tiny.rows("train")[:9]
    assert all(row["completion"] == given[row["provenance"]["row"]]["completion"] for row in joined)
    told = json.loads((tmp_path / "run/statistics.json").read_text())
    assert told["joined"] == {"general": 5} and told["rows"] == len(rows) and told["kept"] == len(sampled)
    assert "fewer_than_asked" not in told


def test_what_an_endpoint_writes_again_must_still_be_right_and_readable(model, tmp_path, server):  # noqa: F811
    """It rewrites most, refuses one, and gives one that is wrong, one that cannot be read."""
    (tmp_path / "template.txt").write_text("{question}|{thought}|{answer}|{language}")
    (tmp_path / "judging.py").write_text("def right(prompt, completion, row):\n    return float('wrong' not in completion)\n")
    source = dataclasses.replace(tiny.source(), limit=32, rewards={f"{tmp_path}/judging.py:right": 1.0})
    rewrite = config.Rewrite(
        model="v3", url=server.url, template=str(tmp_path / "template.txt"), cache=str(tmp_path / "cache")
    )
    settings = stage(model, sources=(source,), keep={}, rewrite=rewrite, together=3, dedupe=0)
    plain = make(dataclasses.replace(settings, rewrite=config.Rewrite()), tmp_path / "plain")
    assert len(plain) >= 5
    said = ["no thought", "<think>so</think>wrong", "<think>so</think>\x07", "<think>own</think><think> new </think>better"]
    asked = []

    def say(body):
        content = body["messages"][0]["content"]
        if content not in asked:
            asked.append(content)
        return said[min(expected.index(content), 3)]

    expected = [f"{row['prompt']}||{row['completion'].strip()}|as it is" for row in plain]
    server.say = say
    rows = make(settings, tmp_path / "run")
    assert sorted(asked) == sorted(expected) and all(r[2]["model"] == "v3" for r in server.requests)
    left = [row for row, content in zip(plain, expected, strict=True) if expected.index(content) >= 3]
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in left]
    assert {row["completion"] for row in rows} == {"<think> new </think>better"}
    assert all(row["provenance"]["rewritten_by"] == "v3" for row in rows)
    told = json.loads((tmp_path / "run/statistics.json").read_text())
    reasons = {"not rewritten", f"rewritten: {tmp_path}/judging.py:right below 1", "rewritten: unreadable"}
    assert reasons <= told["dropped"].keys() and told["kept"] + sum(told["dropped"].values()) == told["answers"]

    # Killed while it was rewriting: what is whole stays, and nothing is asked twice.
    lines = (tmp_path / "run/rewritten.jsonl").read_bytes().splitlines(keepends=True)
    before = {file: (tmp_path / "run" / file).read_bytes() for file in ("rows.jsonl", "statistics.json", "rewritten.jsonl")}
    (tmp_path / "run/rewritten.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:9])
    (tmp_path / "run/finished.json").unlink()
    count = len(server.requests)
    make(settings, tmp_path / "run")
    assert {file: (tmp_path / "run" / file).read_bytes() for file in before} == before and len(server.requests) == count

    # Told to end while it was rewriting: what was rewritten until then is no time that the next attempt makes again.
    def say_and_end(body):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1.0)
        return say(body)

    server.say = say_and_end
    settings = dataclasses.replace(settings, rewrite=dataclasses.replace(rewrite, cache=str(tmp_path / "other")))
    assert pipeline.train(settings, name="rows", run_dir=str(tmp_path / "told")) == pipeline.PREEMPTED
    assert len((tmp_path / "told/rewritten.jsonl").read_bytes().splitlines()) == 3
    server.say = say
    make(settings, tmp_path / "told")
    ledger = json.loads((tmp_path / "told/ledger.json").read_text())
    assert ledger["resumes"] == 1 and ledger["phases"]["rewrite"]["seconds"] > 1 and ledger["redone_seconds"] < 0.5


def test_a_model_that_is_loaded_here_rewrites_too(model, tmp_path):
    (tmp_path / "template.txt").write_text("{answer}")
    rewrite = config.Rewrite(
        model=str(model), template=str(tmp_path / "template.txt"), sampling=config.Sampling(max_new_tokens=4),
        engine=config.Engine(slots=16, max_prompt_tokens=32, chunk=4),
    )  # fmt: skip
    with pytest.raises(GuardStop, match="none of the answers was kept"):  # it writes no thought
        make(stage(model, rewrite=rewrite), tmp_path / "run")
    written = [json.loads(line) for line in (tmp_path / "run/rewritten.jsonl").read_text().splitlines()]
    assert written and {line["dropped"] for line in written} == {"not rewritten"}
    assert not (tmp_path / "run/finished.json").exists()


def test_a_threshold_that_nothing_reaches_stops_the_run(model, tmp_path):
    with pytest.raises(GuardStop, match="none of the answers was kept .*samples.jsonl says why"):
        make(stage(model, keep={f"{tiny.FILE}:checksum": 7.0}), tmp_path / "run")
    assert {a["dropped"] for a in tiny.samples(tmp_path / "run")} == {f"{tiny.FILE}:checksum below 7"}


def test_rewards_that_fail_stop_the_run(model, tmp_path):
    (tmp_path / "judging.py").write_text("def broken(prompt, completion, row):\n    raise KeyError('gone')\n")
    source = dataclasses.replace(tiny.source(), limit=4, rewards={f"{tmp_path}/judging.py:broken": 1.0})
    with pytest.raises(GuardStop, match="16 of 16 scores failed, more than workers.max_error_share 0.2; the first: .*gone"):
        make(stage(model, sources=(source,), keep={}), tmp_path / "run")


def test_rows_without_a_completion_do_not_join(model, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    join = config.Source(path=str(tmp_path / "rows.jsonl"), name="general", rewards={})
    with pytest.raises(config.ConfigError, match="join: source 'general' has rows without a 'completion'"):
        make(stage(model, join=(join,)), tmp_path / "run")


# -- What a rewriting model is asked, and how its reply is read


def test_what_it_is_asked():
    row = {"prompt": "7 + 8?", "completion": "<think> so {answer} </think> 15", "target_language": "zh"}
    said = asked_for(TEMPLATE, row)
    assert "<<< question\n7 + 8?\n>>>" in said and "language of the question (Chinese)" in said
    assert "<<< thoughts\nso {answer}\n>>>" in said  # what an answer says of fields is not replaced
    assert "<<< answer\n15\n>>>" in said


@pytest.mark.parametrize(
    ("reply", "turn"),
    [
        ("<think>a</think>b \n", "<think>a</think>b"),
        ("Here: <think>a</think> b", "<think>a</think> b"),
        ("<think>own</think>\n<think>a</think>b", "<think>a</think>b"),
        ("b", None),
        ("<think>a", None),
        ("a</think>b", None),
    ],
)
def test_how_its_reply_is_read(reply, turn):
    assert turn_in(reply) == turn
