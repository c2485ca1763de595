"""The table of claims, from runs whose figures are known."""

import json

import claims
import pytest


def stage(run, name, evaluations, phases=("update",), seconds=10.0, rows=()):
    """A stage with a step, and so many seconds, between each evaluation and the next."""
    path = run / name
    path.mkdir(parents=True)
    lines = []
    for step, values in enumerate(evaluations):
        if step:
            lines.append({"step": step, **{f"time/{p}": seconds / len(phases) for p in phases}, "time/eval": 99.0})
        lines.append({"step": step, **{f"eval/{key}": value for key, value in values.items()}})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    spent = {p: {"seconds": seconds * (len(evaluations) - 1) / len(phases)} for p in phases} | {"eval": {"seconds": 99.0}}
    (path / "ledger.json").write_text(json.dumps({"devices": 1, "phases": spent}))
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(tmp_path):
    def at(accuracy, language=0.5):
        return {"pass@1": accuracy, "language": language}

    kept = {"prompt": "en 47+38=", "completion": "<think>so</think><answer>85</answer>"}
    stage(tmp_path, "zero", [at(0.2), at(0.8)], phases=("rollout", "update"))
    stage(tmp_path, "rl1", [at(0.5), at(0.69, 0.9)])
    stage(tmp_path, "rl1_without", [at(0.5), at(0.7, 0.6)])
    stage(tmp_path, "rejection", [at(0.1)], rows=[kept, {"prompt": "name a city", "completion": "Rome"}])
    stage(tmp_path, "sft2", [at(0.70)])
    stage(tmp_path, "rl2", [at(0.70), at(0.72)])
    stage(tmp_path, "student", [at(0.2), at(0.6), at(0.6)])
    for name, last in zip("abc", (0.9, 0.9, 0.9), strict=True):
        stage(tmp_path, f"student_rl_{name}", [at(0.2), at(0.3), at(0.4), at(last)])
    return tmp_path


def test_the_verdicts(run):
    lines = {line.split("|")[1].strip(): line for line in claims.table([run]).splitlines() if line.startswith("| ")}
    # 0.6 +- sqrt((0.2 * 0.8 + 0.8 * 0.2) / 512) = 0.025
    assert "0.200 -> 0.800 | +0.600 +- 0.025 | holds" in lines["Zero lifts accuracy"]
    assert "holds" in lines["RL-1: language consistency, without and with its reward"]
    assert "-0.010" in lines["RL-1: accuracy is kept"] and "holds" in lines["RL-1: accuracy is kept"]
    assert "wrong: 0 of 1 | | holds" in lines["rejection sampling keeps only right rows"]
    assert "+0.020 +- 0.028 | FAILS" in lines["the final model beats SFT-2 alone"]
    # RL has 20 seconds: what it reached after 30 does not count.
    assert "0.400 -> 0.600" in lines["distilling beats RL of the student, in the same time"]


def test_a_wrong_row_is_found(run):
    rows = run / "rejection" / "rows.jsonl"
    rows.write_text(rows.read_text() + json.dumps({"prompt": "zh 10+10=", "completion": "<think></think><answer>21</answer>"}))
    assert "wrong: 1 of 2 | | FAILS" in claims.table([run])


def test_three_runs_are_surer_than_one(run):
    one, three = (claims.verdict([(0.75, 0.70)] * n) for n in (1, 4))
    assert "+0.050 +- 0.028 | FAILS" in one and "+0.050 +- 0.014 | holds" in three
