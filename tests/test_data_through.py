"""Rows in GSM8K's layout go through ``r1jax data`` and ``r1jax train``: from files as they are on the Hub to updates."""

import json
from collections import defaultdict
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import tiny
from array_record.python import array_record_module

from r1jax import cli
from r1jax.config import Source
from r1jax.data.sources import load

HERE = Path(__file__).parent
CONFIG = """
import tiny
from r1jax.config import Eval, Source


def config():
    source = Source(path="gsm8k", name="gsm8k", options={"known": "gsm8k"}, rewards={"mine.py:odd": 1.0})
    held_out = Eval(every=2, limit=3, final_samples=1, greedy=False)
    return tiny.grpo(sources=(source,), eval=held_out, dynamic_sampling=1)
"""
REWARD = '''
import json


def odd(prompt, completion, row):
    """By the answer's letters, so that some are right."""
    value = sum(map(ord, completion)) % 2
    with open("seen.jsonl", "a") as file:
        file.write(json.dumps([prompt, row["answer"], value]) + "\\n")
    return float(value)
'''


def question(i):
    return {"question": f"{i}+{i}?", "answer": f"It is {i}+{i} = <<{i}+{i}={2 * i}>>{2 * i}.\n#### {2 * i:,}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("through")
    for name, numbers in {"train": range(500, 515), "test": range(700, 704)}.items():
        file = path / "gsm8k" / "main" / f"{name}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([question(i) for i in numbers]), file)
    (path / "small.py").write_text(CONFIG)
    (path / "mine.py").write_text(REWARD)
    return path


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(HERE))


@pytest.fixture(scope="module")
def run(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(HERE))
        assert cli.main(["train", "small.py", "--run-dir", "run"]) == 0
    return folder / "run"


def test_training(run):
    steps = [row for row in tiny.metrics(run) if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    first, second = (4 + steps[i]["groups/replaced"] for i in (0, 2))  # two rounds of 2 x 2 questions, and those asked again
    asked = [first, first, first + second, first + second]
    assert [row["data/epochs/gsm8k"] for row in steps] == pytest.approx([n / 15 for n in asked])
    answers = {f"{i}+{i}?": f"{2 * i:,}" for i in (*range(500, 515), *range(700, 704))}
    rows = tiny.samples(run)
    trained = [row for row in rows if not row.get("held_out")]
    assert len(trained) == 32 and all(answers[row["prompt"]] == row["answer"] for row in rows)
    assert {row["prompt"] for row in rows if row.get("held_out")} == {f"{i}+{i}?" for i in range(700, 703)}
    assert all(row["reward"] == sum(map(ord, row["completion"])) % 2 for row in trained)
    assert len({row["reward"] for row in trained}) == 2


def test_pass_rates_of_the_trained_model(run, folder, capsys):
    (folder / "seen.jsonl").unlink()
    line = ["--data", './gsm8k{"known":"gsm8k"}', "--reward", "mine.py:odd", "--samples", "3", "--limit", "6", "--seed", "1"]
    more = ["--temperature", "1", "--top-p", "1", "--max-new-tokens", "4", "--mesh.fsdp", "1", "--out", "rates.jsonl"]
    assert cli.main(["data", "pass-rate", "--model", "run", *line, *more]) == 0
    seen = defaultdict(list)
    for prompt, answer, value in map(json.loads, (folder / "seen.jsonl").read_text().splitlines()):
        seen[prompt, answer].append(value)
    rows = [json.loads(line) for line in (folder / "rates.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [f"{i}+{i}?" for i in range(500, 506)]
    for row in rows:
        given = seen[row["prompt"], row["answer"]]
        assert len(given) == 3 and row["pass_rate"] == pytest.approx(sum(given) / 3)
    rates = {row["pass_rate"] for row in rows}
    assert len(rates) > 1
    assert f"6 of 6 rows, mean pass rate {sum(row['pass_rate'] for row in rows) / 6:.3f}" in capsys.readouterr().err
    kept = load(Source(path="rates.jsonl", pass_rate=(max(rates), 1.0)))
    assert [row["prompt"] for row in kept] == [row["prompt"] for row in rows if row["pass_rate"] == max(rates)]


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "array_record"])
def test_build_writes_what_training_sees(folder, capsys, ending):
    assert cli.main(["data", "build", "--data", './gsm8k{"known":"gsm8k"}', "--limit", "9", "--out", f"built.{ending}"]) == 0
    found = load(Source(path="gsm8k", name="gsm8k", options={"known": "gsm8k"}, limit=9))
    assert list(load(Source(path=f"built.{ending}", name="gsm8k"))) == list(found)
    assert f"9 rows in built.{ending}, made of files with sha256 {found.digest}" in capsys.readouterr().err


def test_what_cannot_be_built(folder, capsys):
    (folder / "strange.py").write_text(
        "def rows(split, kind):\n    odd = {'set': {1}, 'mixed': 3}[kind]\n"
        "    return [{'prompt': 'p', 'answer': 'text'}, {'prompt': 'p', 'answer': odd}]\n"
    )
    for ending, kind, said in (
        ("jsonl", "set", "row 1 cannot be written as JSON: Object of type set"),
        ("array_record", "set", "row 1 cannot be written as JSON"),
        ("parquet", "mixed", "a Parquet column holds values of one type: "),
        ("txt", "mixed", "its name must end in .jsonl, .parquet or .array_record"),
    ):
        data = f'strange.py:rows{{"kind":"{kind}"}}'
        assert cli.main(["data", "build", "--data", data, "--out", f"strange.{ending}"]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and said in told
    assert [file.name for file in folder.glob("*strange*")] == ["strange.py"]


def test_array_record_is_read_by_itself(folder):
    assert cli.main(["data", "build", "--data", './gsm8k{"known":"gsm8k"}', "--out", "all.array_record"]) == 0
    reader = array_record_module.ArrayRecordReader("all.array_record")
    assert reader.num_records() == 15 and json.loads(reader.read([7])[0])["prompt"] == "507+507?"


def test_evaluation_takes_the_samples_of_a_known_set(run, folder, capsys):
    tasks = ['./gsm8k{"known":"gsm8k"}', "rates.json.jsonl"]
    (folder / tasks[1]).write_text('{"prompt": "1?", "answer": "1"}\n')
    line = ["--tasks", *tasks, "--max-new-tokens", "4", "--limit", "2", "--mesh.fsdp", "1", "--out", "eval"]
    assert cli.main(["eval", "--model", "run", *line]) == 0
    found = json.loads((folder / "eval" / "results.json").read_text())["figures"]["run"]
    assert [(r["problems"], r["samples"]) for r in found.values()] == [(2, 4), (1, 1)]
    rows = [json.loads(line) for line in (folder / "eval" / "answers.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["700+700?"] * 4 + ["701+701?"] * 4 + ["1?"]
    heads = next(line for line in capsys.readouterr().out.splitlines() if "problems" in line)
    assert all(name in heads for name in ("pass@1", "pass@4", "cons@4"))
