"""Runs laid side by side: which are seeds of one, and what their means are, by hand."""

import json

import pytest

from r1jax import cli
from r1jax.config import ConfigError
from r1jax.observe import compare


def write(run, stage, values):
    (run / stage).mkdir(parents=True, exist_ok=True)
    stages = [*json.loads((run / "config.json").read_text()), stage] if (run / "config.json").exists() else [stage]
    (run / "config.json").write_text(json.dumps({"seed": None} | {name: {} for name in stages}))
    rows = [{"step": step, "eval/pass@1": value} for step, value in values.items()]
    (run / stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [{"step": 1, "loss": 2.0}, *rows]))


def test_seeds_are_taken_together(tmp_path, capsys):
    write(tmp_path / "grpo-0", "rl", {0: 0.2, 10: 0.5, 20: 0.7})
    write(tmp_path / "grpo-1", "rl", {0: 0.3, 20: 0.9, 30: 1.0})
    write(tmp_path / "ppo_095-20261128-180000", ".", {0: 0.1, 20: 0.4})
    out = tmp_path / "all.png"
    runs = sorted(str(p) for p in tmp_path.iterdir())
    assert cli.main(["compare", *runs, "--out", str(out)]) == 0
    said = capsys.readouterr().out.splitlines()
    # Means of 0.2, 0.3 and of 0.7, 0.9; the standard error of two is half their difference.
    grpo, ppo = (next(line.split() for line in said if name in line) for name in ("grpo", "ppo_095"))
    assert [x for x in grpo if x != "│"] == ["grpo", "2", "0.250", "±", "0.050", "0.800", "±", "0.100", "20", "0.800"]
    assert [x for x in ppo if x != "│"] == ["ppo_095", "1", "0.100", "0.400", "20", "0.400"]
    assert out.read_bytes().startswith(b"\x89PNG")
    told = json.loads(out.with_suffix(".json").read_text())["groups"]["grpo"]
    assert told["mean"] == [[0.0, 0.25], [20.0, pytest.approx(0.8)]] and len(told["curves"]) == 2


def test_of_a_pipeline_the_last_stage_that_has_the_metric_counts(tmp_path):
    write(tmp_path / "run", "sft", {0: 0.1})
    write(tmp_path / "run", "rl", {0: 0.6})
    assert compare.points_of(tmp_path / "run", "eval/pass@1") == [(0.0, 0.6)]
    with pytest.raises(ConfigError, match="no stage of it has written 'eval/none'"):
        compare.points_of(tmp_path / "run", "eval/none")
    assert [compare.label(tmp_path / name) for name in ("a-0", "a_1b-20261128-180000", "a")] == ["a", "a_1b", "a"]
