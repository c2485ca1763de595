"""Metrics and samples on disk: what is written is read back, over kills and resumes."""

import json
import math
import os
import struct
import sys
import types

import numpy as np
import pytest
from rich.console import Console

from r1jax.config.observe import Samples
from r1jax.observe.metrics import MetricsWriter, read_metrics, series
from r1jax.observe.samples import SamplesWriter, show_samples


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def events(path):
    """(step, {tag: value}) of each scalar event and the steps from which a restart purges, in TensorBoard's reading order."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    scalars, purges = [], []
    for file in sorted(path.iterdir()):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
            if event.session_log.status == SessionLog.START:
                purges.append(event.step)
                scalars = [(step, values) for step, values in scalars if step < event.step]  # as TensorBoard does
            elif event.summary.value:
                scalars.append((event.step, {v.tag: v.simple_value for v in event.summary.value}))
    return scalars, purges


def test_values_that_are_not_finite_stay_strict_json(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(3, {"loss": float("nan"), "kl": np.float32("inf"), "lr": np.float32(0.5), "n": np.int32(7)})
    row = strict((tmp_path / "metrics.jsonl").read_text())
    assert row == {"step": 3, "loss": None, "kl": None, "lr": 0.5, "n": 7.0}
    assert math.isnan(read_metrics(tmp_path)[0]["loss"])


def test_rows_are_on_disk_before_the_run_ends(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    writer.write(1, {"loss": 2.0})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]
    writer.close()


@pytest.mark.parametrize("torn", [b'{"step": 3, "lo', b'{"step": 3, "loss": 1.0}'])
def test_a_torn_last_line_is_left_out_and_does_not_spoil_the_next(tmp_path, torn):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n' + torn)
    assert [row["step"] for row in read_metrics(file)] == [1, 2]
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(3, {"loss": 1.25})
    assert series(read_metrics(tmp_path), "loss") == [(1, 2.0), (2, 1.5), (3, 1.25)]


def test_a_broken_line_elsewhere_is_named(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2"):
        read_metrics(file)


def test_a_resume_shows_no_step_twice(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in range(1, 6):
            writer.write(step, {"eval/pass@1": step, "loss": math.nan})
    with MetricsWriter(tmp_path, resumed_at=3) as writer:
        writer.write(4, {"eval/pass@1": 40})
        writer.write(5, {"eval/pass@1": 50})
    assert series(read_metrics(tmp_path), "eval/pass@1") == [(1, 1), (2, 2), (3, 3), (4, 40), (5, 50)]
    scalars, purges = events(tmp_path / "tb")
    assert purges == [4]
    assert [(step, values["eval/pass@1"]) for step, values in scalars] == [(1, 1), (2, 2), (3, 3), (4, 40), (5, 50)]
    assert math.isnan(scalars[0][1]["loss"])


def test_wandb_goes_on_with_the_same_run(tmp_path, monkeypatch):
    started, logged = [], []
    run = types.SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: None)
    fake = types.SimpleNamespace(init=lambda **kwargs: started.append(kwargs) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for step in (1, 2):
        with MetricsWriter(tmp_path, tensorboard=False, wandb="zero", config={"lr": 1}, resumed_at=step - 1) as writer:
            writer.write(step, {"kl": 0.5})
    assert started[0]["id"] == started[1]["id"] and started[0]["resume"] == "allow" and started[0]["project"] == "zero"
    assert logged == [(1, {"kl": 0.5}), (2, {"kl": 0.5})]


def test_missing_wandb_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"r1jax\[wandb\]") as error:
        MetricsWriter(tmp_path, wandb="zero")
    assert "\n" not in str(error.value)


def sample(accuracy, *, status="ok", source="arithmetic", length=10, completion="<answer>5</answer>"):
    scores = {
        "accuracy": {"value": accuracy, "status": status, "why": "because"},
        "format": {"value": 1.0, "status": "ok", "why": ""},
    }
    row = {"prompt_id": 0, "sample": 0, "source": source, "prompt": "2+3?", "completion": completion, "answer": 5}
    return {**row, "rewards": scores, "reward": accuracy + 1.0, "advantage": -0.5, "finish": "stop", "length": length}


def shown(run, **kwargs):
    with (run / "shown.txt").open("w+", encoding="utf-8") as file:
        show_samples(Samples(str(run), **kwargs), Console(file=file, width=60))
        file.seek(0)
        return file.read()


@pytest.fixture
def run(tmp_path):
    with SamplesWriter(tmp_path) as writer:
        first = sample(0.0, completion="first", status="timeout")
        fourth = sample(0.0, completion="fourth \x1b[2J\ud800", length=30)
        fourth["held_out"] = True
        writer.write(1, [first, sample(1.0, completion="second", length=40) | {"finish": "length"}])
        writer.write(2, [sample(0.0, completion="third", source="letters"), fourth])
    return tmp_path


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ((), "first second third fourth"),
        (("accuracy=0",), "first third fourth"),
        (("accuracy=0", "step>1"), "third fourth"),
        (("length<30", "accuracy<0.5"), "first third"),
        (("length>30",), "second"),
        (("source=letters",), "third"),
        (("accuracy.status=timeout",), "first"),
        (("source<5",), ""),
        (("source!=letters", "step>=2"), "fourth"),
        (("length<=30", "accuracy!=1"), "first third fourth"),
        (("truncated=1",), "second"),
        (("held_out=1",), "fourth"),
    ],
)
def test_where_selects(run, where, found):
    text = shown(run, where=where, last=10, follow=False)
    assert [word for word in ["first", "second", "third", "fourth"] if word in text] == found.split()


def test_text_is_sought_in_prompt_and_answer_in_any_case(run):
    assert "third" in shown(run, text="THIRD") and "second" not in shown(run, text="THIRD")
    assert shown(run, text="2+3").count("2+3?") == 4 and "no sample matches" in shown(run, text="nowhere")
    assert "second" in shown(run, text="second", where=("truncated=1",))
    assert "third" not in shown(run, text="i", where=("step<2",))


def test_a_sample_shows_scores_and_nothing_that_moves_the_cursor(run):
    text = shown(run, where=("accuracy.status=timeout",), last=1, follow=False)
    for part in ("step 1", "2+3?", "first", "timeout", "because", "advantage -0.5", "stop", "reward 1"):
        assert part in text
    last = shown(run, where=(), last=1, follow=False)
    assert "fourth \\x1b[2J\\ud800" in last and "third" not in last and "\x1b" not in last


def test_an_unknown_name_lists_those_there_are(run):
    with pytest.raises(ValueError, match="acuracy.*accuracy, accuracy.status, advantage") as error:
        shown(run, where=("acuracy=0",), last=1, follow=False)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="NAME=VALUE"):
        shown(run, where=("accuracy",), last=1, follow=False)
    with pytest.raises(ValueError, match="NAME<NUMBER"):
        shown(run, where=("accuracy<high",), last=1, follow=False)


def test_samples_of_a_resumed_run_are_cut_back(run):
    with SamplesWriter(run, resumed_at=1) as writer:
        writer.write(2, [sample(0.0, completion="again")])
    text = shown(run, where=(), last=10, follow=False)
    assert "second" in text and "again" in text and "third" not in text


def test_a_pipeline_shows_its_stages_in_their_order(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"seed": None, "warmup": {}, "grpo": {}}))
    for stage in ("grpo", "warmup", "grpo.1"):
        with SamplesWriter(tmp_path / stage) as writer:
            writer.write(1, [sample(1.0, completion=f"by-{stage}")])
    text = shown(tmp_path, where=(), last=1, follow=False)
    assert text.index("by-warmup") < text.index("by-grpo")
    assert "warmup  step 1" in text and "grpo.1" not in text


def test_a_folder_of_runs_names_the_newest(tmp_path):
    for number in range(7):
        stage = tmp_path / f"run-{number}"
        SamplesWriter(stage).close()  # else each would pass for a stage of one run
        (stage / "config.json").write_text("{}")
        os.utime(stage, (number, number))
    with pytest.raises(ValueError, match="is a folder of 7 runs; name one: ") as error:
        show_samples(Samples(str(tmp_path)))
    assert [word.strip(",").rpartition("/")[2] for word in str(error.value).split()[-6:]] == [
        *(f"run-{number}" for number in range(2, 7)),
        "...",
    ]


def test_following_shows_what_comes_and_ends_on_interrupt(run, monkeypatch):
    naps = iter([[sample(1.0, completion="fifth"), sample(0.0, completion="sixth")], None])

    def nap(_):
        rows = next(naps)
        if rows is None:
            raise KeyboardInterrupt
        with SamplesWriter(run) as writer:
            writer.write(3, rows)

    monkeypatch.setattr("r1jax.observe.samples.time.sleep", nap)
    text = shown(run, where=("accuracy=1",), last=10, follow=True)
    assert text.count("second") == 1 and text.count("fifth") == 1 and "sixth" not in text
