"""What a finished run shows at its end."""

import dataclasses
import json
from pathlib import Path

import pytest
import tiny

from r1jax.stages import summary

RUN = Path("runs/quickstart-20261122-101010")


@pytest.fixture
def end(tmp_path, monkeypatch, capsys):
    """The last words of a run, on a terminal of 80 columns, by how many problems it left out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    RUN.mkdir(parents=True)

    def end(left_out: float, **rewards: float) -> str:
        rows = [{"step": step, "eval/pass@1": step / 10, "eval/left_out": left_out} for step in (0, 8)]
        (RUN / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = dataclasses.replace(tiny.source(), rewards=rewards or {"accuracy": 1.0})
        summary.show(RUN, tiny.sft(sources=(source,)))
        return capsys.readouterr().out

    return end


def test_problems_that_were_left_out_are_told_in_words(end):
    assert "left" not in end(0.0)
    out = end(3.0)
    assert "3 held-out problems were left out: their prompts are too long" in out and "left_out" not in out


def test_the_hints_are_commands_that_can_be_copied_and_fit(end):
    lines = end(0.0).splitlines()
    assert max(map(len, lines)) <= 80
    hints = lines[lines.index(f"The run is in {RUN}. Try next:") + 1 :]
    assert hints[1::2] == [
        f"    r1jax report {RUN}",
        f"    r1jax generate --model {RUN} --prompt '...'",
        f"    r1jax samples {RUN} --where accuracy=0",
        f"    tensorboard --logdir {RUN}",
    ]
    assert "pip install tensorboard" in hints[6]


def test_what_goes_wrong_is_asked_by_the_first_reward(end):
    out = end(0.0, **{"my rewards.py:f": 1.0, "format": 1.0})
    assert f"r1jax samples {RUN} --where 'my rewards.py:f=0'\n" in out and "accuracy" not in out
