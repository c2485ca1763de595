"""``r1jax data`` on files: what is written, and that a mistake is one line and leaves nothing behind."""

import datetime
import json

import pyarrow.parquet
import pytest
from hub_server import serve

from r1jax import cli

QUESTIONS = [
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many were sold?",
    "A robe takes 2 bolts of blue fiber and half that much white fiber. How many bolts in total does it take?",
    "Toula went to the bakery and bought various types of pastries. She bought 3 dozen donuts. How many is that?",
    "What is 12 + 34?",
]
ROWS = [{"question": text, "answer": f"#### {i}", "n": i} for i, text in enumerate(QUESTIONS)]
FIELDS = '{"fields":{"prompt":"question"}}'


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write(tmp_path / "rows.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_decontaminate(folder, capsys):
    copy = f"Here is one. {QUESTIONS[1].upper()} Mind the fiber."
    train = [ROWS[0], {"prompt": copy, "answer": "3"}, {"prompt": "So, what is 12 + 34 ?"}, {"prompt": "What is 12?"}]
    write(folder / "train.jsonl", train)
    write(folder / "other.jsonl", [{"prompt": "An entirely different question", "answer": 1}])
    line = ["--data", "train.jsonl", "--against", f"rows.jsonl{FIELDS}", "other.jsonl", "--out", "out.jsonl"]
    assert cli.main(["data", "decontaminate", *line]) == 0
    assert read(folder / "out.jsonl") == [train[3]]
    report = read(folder / "out.report.jsonl")
    assert [(r["row"], r["field"], r["benchmark"]) for r in report] == [
        ("train.jsonl:1", "question", "rows.jsonl:1"),
        ("train.jsonl:2", "prompt", "rows.jsonl:2"),
        ("train.jsonl:3", "prompt", "rows.jsonl:4"),
    ]
    assert report[1]["shared"] == QUESTIONS[1].lower()[:-1] and report[2]["shared"] == "what is 12 + 34"
    summary = json.loads((folder / "out.summary.json").read_text())
    assert [(part["rows"], part["matched"]) for part in summary["against"]] == [(4, 3), (1, 0)]
    assert (summary["rows"], summary["kept"], summary["dropped"]) == (4, 1, 3)
    assert summary["settings"]["words"] == 10 and len(summary["data"]["digest"]) == 64
    out, err = capsys.readouterr()
    assert not out and f"rows.jsonl{FIELDS}: 3 of 4 rows matched" in err and "4 rows, 1 kept in out.jsonl, 3 dropped" in err
    # What was kept has nothing to drop.
    assert cli.main(["data", "decontaminate", "--data", "out.jsonl", *line[2:-1], "again.jsonl"]) == 0
    assert (folder / "again.jsonl").read_bytes() == (folder / "out.jsonl").read_bytes()


def test_dedupe_a_folder_of_parquet(folder, capsys):
    (folder / "set").mkdir()
    again = [{**ROWS[1], "question": QUESTIONS[1].upper(), "answer": "#### 7"}, {**ROWS[3], "question": "what is 12+34"}]
    for name, rows in (("train-00000-of-00002", ROWS), ("train-00001-of-00002", [*again, ROWS[0]])):
        dated = [row | {"day": datetime.date(2024, 5, 1)} for row in rows]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(dated), folder / f"set/{name}.parquet")
    assert cli.main(["data", "dedupe", "--data", f"set{FIELDS}", "--out", "out.jsonl"]) == 0
    kept = read(folder / "out.jsonl")
    assert [row["n"] for row in kept] == [0, 1, 2, 3]
    assert kept[0] == ROWS[0] | {"day": "2024-05-01", "prompt": QUESTIONS[0]}
    report = read(folder / "out.report.jsonl")
    assert [(r["kept"], [d["row"] for d in r["dropped"]], r["answers_differ"]) for r in report] == [
        ("set/train-00000-of-00002.parquet row 0", ["set/train-00001-of-00002.parquet row 2"], False),
        ("set/train-00000-of-00002.parquet row 1", ["set/train-00001-of-00002.parquet row 0"], True),
        ("set/train-00000-of-00002.parquet row 3", ["set/train-00001-of-00002.parquet row 1"], False),
    ]
    assert all(d["similarity"] == 1 for r in report for d in r["dropped"])
    summary = json.loads((folder / "out.summary.json").read_text())
    assert summary["groups"] == 3 and summary["dropped_same_shingles"] == 3 and summary["groups_answers_differ"] == 1
    assert "in 1 groups the answers differ" in capsys.readouterr().err


def test_rows_on_the_hub(folder):
    program = "import sys\nfrom r1jax.cli import main\nprint(main(sys.argv[1].split()))"
    with serve() as hub:
        hub.repos["datasets/org/sums"] = {"train.jsonl": (folder / "rows.jsonl").read_bytes()}
        said = hub.run(folder, program.replace("sys.argv[1]", repr("data dedupe --data org/sums" + FIELDS + " --out o.jsonl")))
    assert said == ["0"] and len(read(folder / "o.jsonl")) == 4
    about = json.loads((folder / "o.summary.json").read_text())["data"]
    assert about["path"] == "org/sums" and len(about["commit"]) == 40


def test_show(folder, capsys):
    assert cli.main(["data", "show", "--data", "rows.jsonl", "--rows", "1"]) == 0
    out = capsys.readouterr().out
    sizes = sorted(map(len, QUESTIONS))
    assert out.startswith("4 rows in rows.jsonl\nsha256 ")
    assert f"question  text 4; characters: median {sizes[2]}, most {sizes[3]}" in out
    assert "n         int 4" in out and '\nrows.jsonl:1\n  question: "Natalia sold' in out and "rows.jsonl:2" not in out
    assert cli.main(["data"]) == 0
    listed = capsys.readouterr().out
    assert "usage: r1jax data COMMAND" in listed and "decontaminate" in listed


@pytest.mark.parametrize(
    "line, said",
    [
        ("show --data nowhere.jsonl", "nowhere.jsonl: no such file or directory"),
        ("show --data rows.jsonl --rows -1", "--rows is -1"),
        ("shwo --data rows.jsonl", "no command 'data shwo'; did you mean show?"),
        ("dedupe --data rows.jsonl --out o.jsonl", "rows.jsonl:1: no 'prompt' (it has 'question', 'answer', 'n'); name"),
        ("dedupe --data rows.jsonl{ --out o.jsonl", "its options are not JSON"),
        ("dedupe --data rows.jsonl --out o.parquet", "--out is o.parquet; rows are written as JSON Lines"),
        ("dedupe --data rows.jsonl --out no/o.jsonl", "--out no/o.jsonl: there is no directory no"),
        ("dedupe --data rows.jsonl --out rows.jsonl", "--out rows.jsonl is the file that is read"),
        ("dedupe --data rows.jsonl --out o.jsonl --threshold 1.1", "--threshold is 1.1; it must be in [0.5, 1]"),
        ("decontaminate --data rows.jsonl --out o.jsonl --against", "--against is empty"),
        ("decontaminate --data rows.jsonl --out o.jsonl --against rows.jsonl", "rows.jsonl:1: no 'prompt'"),
        ("decontaminate --data rows.jsonl --out o.jsonl --against rows.jsonl --words 2", "--words is 2"),
        ("provenance --data rows.jsonl --out o.jsonl --manifest m.toml", "cannot read m.toml"),
        ("provenance --data half.jsonl --out o.jsonl", "half.jsonl:2: not JSON"),
        ("provenance --data image.parquet --out o.jsonl", "a row holds b'\\x89PNG', of type bytes, which JSON cannot"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_file(folder, capsys, line, said):
    (folder / "half.jsonl").write_text('{"prompt": "a"}\n{"prompt": ')
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"prompt": "a", "image": b"\x89PNG"}]), folder / "image.parquet")
    before = sorted(path.name for path in folder.iterdir())
    assert cli.main(["data", *line.split()]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("r1jax: error: ") and err.count("\n") == 1 and said in err and not out
    assert sorted(path.name for path in folder.iterdir()) == before
    assert read(folder / "rows.jsonl") == ROWS
