"""``r1jax reward`` on files: the scores of training, in the order of the rows, all of them or no file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from r1jax import cli
from r1jax.config import Workers
from r1jax.rewards import Item, Pool

ROOT = Path(__file__).parent.parent
ROWS = [
    {"prompt": "6 * 7?", "completion": "<think>a</think> <answer>42</answer>", "answer": 42, "id": "a"},
    {"prompt": [{"role": "user", "content": "1 + 1?"}], "completion": "<answer>3</answer>", "answer": "2", "id": "é"},
    {"prompt": "half?", "completion": "<think>b</think> <answer>50%</answer>", "answer": "1/2", "rewards": "old"},
    {"prompt": "broken", "completion": "<answer>1</answer>", "answer": None},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(rewards, data, out, *more):
    return cli.main(["reward", "--rewards", *rewards, "--data", str(data), "--out", str(out), "--workers.count", "1", *more])


@pytest.mark.parametrize("explain", [False, True])
def test_rows_get_the_scores_of_training(tmp_path, capsys, explain):
    data, out = write(tmp_path / "rows.jsonl", ROWS), tmp_path / "out.jsonl"
    assert run(["accuracy", "format"], data, out, *["--explain"] * explain) == 0
    found = read(out)
    with Pool(Workers(count=1)) as pool:
        scores = pool.score([Item(row["prompt"], row["completion"], row, ("accuracy", "format")) for row in ROWS])
    assert [row["rewards"] for row in found] == [
        {"accuracy": 1.0, "format": 1.0}, {"accuracy": 0.0, "format": 0.0}, {"accuracy": 1.0, "format": 1.0},
        {"accuracy": 0.0, "format": 0.0},
    ]  # fmt: skip
    for row, before, expected in zip(found, ROWS, scores, strict=True):
        assert row | {"rewards": None} == before | {
            "rewards": None,
            "status": {name: s.status for name, s in expected.items()},
            **({"why": {name: s.why for name, s in expected.items()}} if explain else {}),
        }
    assert found[3]["status"] == {"accuracy": "error", "format": "ok"}
    told = capsys.readouterr()
    assert told.out == "" and "4 rows in" in told.err
    assert "accuracy  mean 0.5000  3 ok, 1 error\nformat    mean 0.5000  4 ok\n" in told.err


def test_many_rows_keep_their_order(tmp_path):
    rows = [{"prompt": "p", "completion": f"<answer>{i}</answer>", "answer": i - i % 2} for i in range(3000)]
    out = tmp_path / "out.jsonl"
    assert run(["accuracy"], write(tmp_path / "rows.jsonl", rows), out, "--workers.queue", "100") == 0
    assert [(row["answer"], row["rewards"]["accuracy"]) for row in read(out)] == [
        (row["answer"], 1.0 - i % 2) for i, row in enumerate(rows)
    ]


def test_scores_that_fail_end_with_a_guard_and_the_whole_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def f(p, c, row):\n    return 1 / row['answer']\n")
    rows = [{"prompt": "p", "completion": "", "answer": i % 2} for i in range(4)]
    data, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    assert run(["mine.py:f"], data, out) == 3
    told = capsys.readouterr().err
    assert "2 of 4 scores failed, more than workers.max_error_share 0.2; the first: " in told
    assert f"{data}:1: reward mine.py:f error: ZeroDivisionError" in told and f"{out} has all" in told
    assert [row["status"]["mine.py:f"] for row in read(out)] == ["error", "ok"] * 2
    assert run(["mine.py:f"], data, out, "--workers.max-error-share", "0.5") == 0


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"prompt": "p", "completion": "c"', "rows.jsonl:601: not JSON"),
        ('{"prompt": "p", "answer": 1}', "rows.jsonl:601: a row must hold 'completion', a string"),
        ('{"completion": "c"}', "rows.jsonl:601: no 'prompt' (it has 'completion')"),
    ],
)
def test_a_bad_row_late_in_the_file_leaves_what_was_there(tmp_path, capsys, line, complaint):
    data, out = write(tmp_path / "rows.jsonl", ROWS[:1] * 600), tmp_path / "out.jsonl"
    data.write_text(data.read_text() + line + "\n")
    out.write_text("before")
    assert run(["format"], data, out) == 2
    assert complaint in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl"] and out.read_text() == "before"


@pytest.mark.parametrize(
    ("rewards", "data", "out", "complaint"),
    [
        (["acuracy"], "rows.jsonl", "out.jsonl", "reward 'acuracy': not a built-in"),
        (["format", "format"], "rows.jsonl", "out.jsonl", "--rewards names format twice"),
        (["format"], "none.jsonl", "out.jsonl", "cannot read"),
        (["format"], "empty.jsonl", "out.jsonl", "has no rows"),
        (["format"], "rows.jsonl", "nowhere/out.jsonl", "there is no directory"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, capsys, rewards, data, out, complaint):
    write(tmp_path / "rows.jsonl", ROWS)
    write(tmp_path / "empty.jsonl", [])
    assert run(rewards, tmp_path / data, tmp_path / out) == 2
    told = capsys.readouterr().err
    assert complaint in told and told.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_it_loads_no_jax(tmp_path):
    write(tmp_path / "rows.jsonl", ROWS)
    program = (
        "import sys; from r1jax import cli\n"
        "assert cli.main('reward --rewards accuracy format --data rows.jsonl --out out.jsonl'.split()) == 0\n"
        "print({'jax', 'numpy', 'flax', 'grain'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
