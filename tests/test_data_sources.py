import dataclasses
import io
import json
import sys
from collections import Counter

import pyarrow.parquet
import pytest
from array_record.python import array_record_module
from hub_server import COMMIT, serve

from r1jax import rewards
from r1jax.config import ConfigError, Source
from r1jax.data.sources import Mixture, load


def jsonl(tmp_path, *lines, name="rows.jsonl"):
    path = tmp_path / name
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return str(path)


def numbered(name, count, weight=1.0):
    return Source(name=name, weight=weight), [{"prompt": f"{name}{i}", "answer": i, "source": name} for i in range(count)]


def test_jsonl_rows(tmp_path):
    messages = [{"role": "user", "content": "Größe?"}]
    path = jsonl(tmp_path, {"prompt": "2+2=", "answer": 4, "level": 1}, b"", {"prompt": messages, "completion": "ok"})
    rows = load(Source(path=path, name="mine"))
    assert list(rows) == [
        {"prompt": "2+2=", "answer": 4, "level": 1, "source": "mine"},
        {"prompt": messages, "answer": None, "completion": "ok", "source": "mine"},
    ]
    assert rows[-1] == rows[1] and rows[:1] == [rows[0]]
    assert len(load(Source(path=path, limit=1))) == 1


@pytest.mark.parametrize(
    "line, said",
    [
        (b'{"prompt": "a", ', "not JSON"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        ([1], "not list"),
        ({"answer": 1}, "no 'prompt'"),
        ({"prompt": "a"}, "no 'answer'"),
        ({"prompt": 3, "answer": 1}, "'prompt' is int"),
        ({"prompt": [], "answer": 1}, "empty list"),
        ({"prompt": [{"role": "user"}], "answer": 1}, "not a message"),
        ({"prompt": "a", "completion": 3}, "'completion' is int"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, said):
    path = jsonl(tmp_path, {"prompt": "2+2=", "answer": 4}, b"", line, {"prompt": "b", "answer": 1})
    with pytest.raises(ConfigError) as error:
        load(Source(path=path))
    message = str(error.value)
    assert f"{path}:3: " in message and said in message and "\n" not in message


def test_jsonl_holds_out_by_prompt(tmp_path):
    path = jsonl(tmp_path, *({"prompt": f"q{i % 150}", "answer": i} for i in range(300)))
    source = Source(path=path, options={"test_share": 0.2})
    train, test = load(source), load(source, held_out=True)
    assert len(train) + len(test) == 300 and 30 <= len(test) <= 90
    assert not {r["prompt"] for r in train} & {r["prompt"] for r in test}
    longer = Source(
        path=jsonl(tmp_path, *({"prompt": f"q{i}", "answer": i} for i in range(999)), name="b.jsonl"), options=source.options
    )
    assert {r["prompt"] for r in test} == {r["prompt"] for r in load(longer, held_out=True)} & {f"q{i}" for i in range(150)}
    with pytest.raises(ConfigError, match="holds nothing out; set options test_share"):
        load(Source(path=path), held_out=True)


@pytest.mark.parametrize(
    "path, options, said",
    [
        ("nowhere.jsonl", {}, "path 'nowhere.jsonl' is no file or folder here (in "),
        ("no/where.jsonl", {}, "no/where.jsonl: no such file or directory"),
        ("pyproject.toml", {}, "not a .jsonl, .parquet or .array_record file"),
        ("tests", {}, "has no .jsonl, .parquet or .array_record files for split 'train'"),
        ("no/where.jsonl", {"test_shar": 0.1}, "options.test_shar: FileOptions has no such field"),
        ("no/where.jsonl", {"test_share": 1.0}, "test_share is 1.0"),
        ("no/where.jsonl", {"answer_pattern": "("}, "answer_pattern '(' is no regular expression"),
        ("r1jax.data.nothing:rows", {}, "cannot import"),
        ("nothing.py:rows", {}, "there is no file"),
        ("r1jax.data.arithmetic:row", {}, "did you mean rows"),
        ("r1jax.data.arithmetic:rows", {"digts": 3}, "unexpected keyword argument 'digts'"),
        ("r1jax.data.arithmetic:rows", {"digits": 0}, "digits is 0"),
    ],
)
def test_a_source_that_cannot_be_read(path, options, said):
    with pytest.raises(ConfigError) as error:
        load(Source(path=path, name="mine", options=options))
    assert str(error.value).startswith("source 'mine': ") and said in str(error.value) and "\n" not in str(error.value)


# Of every row of GSM8K the answer ends in a line "#### NUMBER"; its repository has two configs of two splits each.
GSM8K = {"config": "main", "fields": {"prompt": "question"}, "answer_pattern": "#### (.+)"}
SUMS = [{"question": f"{i} apples and {i} more?", "answer": f"<<{i}+{i}={2 * i}>>\n#### {2 * i:,}"} for i in range(900)]


def parquet(rows):
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


@pytest.fixture
def gsm8k(tmp_path):
    """A folder with the files of openai/gsm8k: ten training rows in two shards, four of the test split."""
    parts = {"main/train-00000-of-00002-ab12": SUMS[500:505], "main/train-00001-of-00002-cd34": SUMS[505:510]}
    parts |= {"main/test-00000-of-00001": SUMS[700:704], "socratic/train-00000-of-00001": SUMS[:3]}
    files = {f"{name}.parquet": parquet(rows) for name, rows in parts.items()} | {"README.md": b""}
    for name, content in files.items():
        (tmp_path / "gsm8k" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "gsm8k" / name).write_bytes(content)
    return tmp_path / "gsm8k"


def test_a_data_set_with_configs_splits_and_columns(gsm8k):
    source = Source(path=str(gsm8k), name="gsm8k", options=GSM8K)
    train, test = load(source), load(source, held_out=True)
    assert [row["answer"] for row in train] == [f"{2 * i:,}" for i in range(500, 510)]
    assert [row["prompt"] for row in test] == [row["question"] for row in SUMS[700:704]]
    question = SUMS[500]["question"]
    assert train[0] == {"question": question, "prompt": question, "answer": "1,000", "source": "gsm8k"}
    reward = rewards.load("accuracy")
    assert [reward(None, f"\\boxed{{{answer}}}", train[0]).value for answer in ("1000", "1,000", "500")] == [1.0, 1.0, 0.0]
    # A share is cut from the training rows; what is left is the rest.
    cut = dataclasses.replace(source, options={**GSM8K, "test_share": 0.4})
    both = [*load(cut), *load(cut, held_out=True)]
    assert 0 < len(load(cut)) < 10 and sorted(r["prompt"] for r in both) == sorted(r["prompt"] for r in train)
    # The pattern names the files, of either config.
    socratic = dataclasses.replace(source, options={**GSM8K, "config": None, "files": "socratic/{split}-*.parquet"})
    assert [row["answer"] for row in load(socratic)] == ["0", "2", "4"]
    one = dataclasses.replace(source, path=f"{gsm8k}/main/test-00000-of-00001.parquet", split="test")
    assert list(load(one)) == list(test)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"config": None}, "has several sets of rows (main/train-00000-of-00002-ab12.parquet, "),
        ({"config": "mian"}, "has no .jsonl, .parquet or .array_record files for split 'train', config 'mian'; it has main/"),
        ({"files": "main/tran*"}, "for split 'train', config 'main', files 'main/tran*'; it has"),
        ({"fields": {"prompt": "problem"}}, "ab12.parquet row 0: no 'problem' for 'prompt' (it has 'question', 'a"),
        ({"fields": {}}, "row 0: no 'prompt' (it has"),
        ({"answer_pattern": r"boxed\{(.+)\}"}, "row 0: answer_pattern 'boxed\\\\{(.+)\\\\}' finds nothing in"),
    ],
)
def test_a_data_set_that_is_not_as_the_options_say(gsm8k, change, said):
    with pytest.raises(ConfigError) as error:
        load(Source(path=str(gsm8k), name="mine", options={**GSM8K, **change}))
    assert str(error.value).startswith("source 'mine': ") and said in str(error.value) and "\n" not in str(error.value)


def test_files_that_name_no_split_and_other_splits(gsm8k, tmp_path):
    rows = tmp_path / "rows"
    rows.mkdir()
    for name, numbers in (("latest1", (1, 2)), ("latest2", (3,))):  # no word 'test'
        jsonl(rows, *({"prompt": f"{i}?", "answer": i} for i in numbers), name=f"{name}.jsonl")
    source = Source(path=str(rows))
    assert [row["answer"] for row in load(source)] == [1, 2, 3]
    with pytest.raises(ConfigError, match="holds nothing out; set options test_share"):
        load(source, held_out=True)
    jsonl(rows, {"prompt": "4?", "answer": 4}, name="validation.jsonl")
    assert [row["answer"] for row in load(dataclasses.replace(source, split="validation"))] == [4]
    with pytest.raises(ConfigError, match="array_record files for split 'train'; it has latest1.jsonl, latest2.jsonl"):
        load(source)


def test_parquet_that_cannot_be_read(gsm8k, monkeypatch):
    file = gsm8k / "main/test-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    source = Source(path=str(gsm8k), split="test", options=GSM8K)
    with pytest.raises(ConfigError, match="test-00000-of-00001.parquet is not a Parquet file, or not all of it"):
        load(source)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'r1jax\[parquet\]'"):
        load(source)


def test_a_data_set_on_the_hub(gsm8k, tmp_path):
    program = f"""
from r1jax.config import ConfigError, Source
from r1jax.data.sources import load
rows = load(Source(path="openai/gsm8k@v1", name="gsm8k", options={GSM8K}), held_out=True)
print(rows.digest, rows.commit, len(rows), rows[3]["prompt"], rows[3]["answer"])
try:
    load(Source(path="openai/gsm8k", split="val", options={{"config": "main"}}))
except ConfigError as error:
    print(error)
"""
    with serve() as hub:
        files = [file for file in gsm8k.rglob("*") if file.is_file()]
        hub.repos["datasets/openai/gsm8k"] = {str(file.relative_to(gsm8k)): file.read_bytes() for file in files}
        said = hub.run(tmp_path, program)
        assert hub.downloads() == ["main/test-00000-of-00001.parquet"]
    local = load(Source(path=str(gsm8k), options=GSM8K), held_out=True)
    assert said[0] == f"{local.digest} {COMMIT} 4 703 apples and 703 more? 1,406"
    assert said[1].startswith("source 'arithmetic': openai/gsm8k: has no .jsonl, .parquet or .array_record files for split")


def test_a_function_in_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def rows(split, n=2):\n    return [{'prompt': split, 'answer': i} for i in range(n)] + [{'prompt': ''}]\n")
    rows = load(Source(path=f"{file}:rows", name="mine", options={"n": 3}))
    assert rows[2] == {"prompt": "train", "answer": 2, "source": "mine"}
    assert load(Source(path=f"{file}:rows"), held_out=True)[0]["prompt"] == "test"
    with pytest.raises(ConfigError, match="mine.py:rows row 3: no 'answer'"):
        rows[3]


def test_mixture_shares_and_epochs():
    mixture = Mixture([numbered("a", 5, 1.0), numbered("b", 7, 3.0), numbered("c", 3, 0.0)], seed=0)
    drawn = [mixture[i] for i in range(280)]
    counts = Counter(r["source"] for r in drawn)
    assert counts == {"a": 70, "b": 210}
    for start in range(0, 280, 40):
        assert abs(Counter(r["source"] for r in drawn[start : start + 40])["a"] - 10) <= 1
    for name, size in (("a", 5), ("b", 7)):
        answers = [r["answer"] for r in drawn if r["source"] == name]
        epochs = [answers[i : i + size] for i in range(0, len(answers), size)]
        assert all(sorted(e) == list(range(size)) for e in epochs)
        assert len({tuple(e) for e in epochs}) > len(epochs) // 2  # another order each time


def test_mixture_is_a_function_of_sources_seed_and_index():
    sources = [numbered("a", 50), numbered("b", 9, 2.0)]
    one, again, other = Mixture(sources, seed=1), Mixture(sources, seed=1), Mixture(sources, seed=2)
    order = [*range(100, 0, -7), 10**12]
    drawn = {i: again[i] for i in order}
    assert all(one[i] == drawn[i] for i in sorted(order))
    assert [one[i] for i in range(30)] != [other[i] for i in range(30)]
    assert one.fingerprint == again.fingerprint != other.fingerprint
    with pytest.raises(IndexError):
        one[-1]


def test_fingerprint_sees_weights_and_every_byte_of_a_file(tmp_path):
    lines = [{"prompt": f"q{i}", "answer": i} for i in range(100)]

    def fingerprint(lines, **changes):
        source = Source(path=jsonl(tmp_path, *lines), **changes)
        return Mixture([(source, load(source))], seed=0).fingerprint

    assert fingerprint(lines) == fingerprint(lines)
    assert fingerprint(lines) != fingerprint(lines, weight=2.0)
    assert fingerprint(lines) != fingerprint([*lines[:41], {"prompt": "q41", "answer": 42}, *lines[42:]])


def test_reasoning_gym():
    pytest.importorskip("reasoning_gym")
    source = Source(path="reasoning_gym:chain_sum", name="sums", options={"max_terms": 2, "max_digits": 1})
    train, test = load(source), load(source, held_out=True)
    row = train[4]
    assert row == load(source)[4] and row["source"] == "sums" and row["task"] == "chain_sum"
    assert row["entry"]["question"] == row["prompt"] and row["entry"]["answer"] == row["answer"]
    # One-digit sums of two terms: a few hundred questions, so that without a split they would meet at once.
    asked = {train[i]["prompt"] for i in range(600)}, {test[i]["prompt"] for i in range(200)}
    assert len(asked[0]) > 50 and len(asked[1]) > 20 and not asked[0] & asked[1]
    for path, options, said in [
        ("reasoning_gym:chain_smu", {}, "did you mean .*chain_sum"),
        ("reasoning_gym:chain_sum", {"terms": 3}, "does not take options"),
        ("reasoning_gym:chain_sum", {"min_terms": -1}, "does not take options"),
    ]:
        with pytest.raises(ConfigError, match=said):
            load(Source(path=path, options=options))


def test_reasoning_gym_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ConfigError, match=r"pip install 'r1jax\[reasoning-gym\]'"):
        load(Source(path="reasoning_gym:chain_sum"))


# -- Kinds of rows


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p", "chosen": "good", "rejected": "bad"}, ""),
        ({"prompt": "p", "completion": "c", "safe": False}, ""),
        ({"prompt": "p", "chosen": "good"}, "a preference has both 'chosen' and 'rejected'"),
        ({"prompt": "p", "rejected": "bad", "answer": 1}, "a preference has both"),
        ({"prompt": "p", "chosen": "good", "rejected": ["bad"]}, "'rejected' is list; it must be a string"),
        ({"prompt": "p", "chosen": "same", "rejected": "same"}, "'chosen' and 'rejected' are the same, 'same'"),
        ({"prompt": "p", "completion": "c", "safe": "no"}, "'safe' is 'no'; it is true or false"),
        ({"prompt": "p", "answer": "a", "safe": True}, "and says so of a 'completion'"),
        ({"chosen": "good", "rejected": "bad"}, "no 'prompt'"),
    ],
)
def test_preferences_and_safety_labels(tmp_path, row, said):
    source = Source(path=jsonl(tmp_path, row), name="mine")
    if not said:
        assert list(load(source)) == [{"answer": None, **row, "source": "mine"}]
        return
    with pytest.raises(ConfigError) as error:
        load(source)
    assert "rows.jsonl:1: " in str(error.value) and said in str(error.value)


def test_conversations(tmp_path):
    said = [("system", "s"), ("user", "u1"), ("assistant", "a1"), ("user", "u2"), ("assistant", "a2"), ("user", "u3")]
    messages = [{"role": role, "content": content} for role, content in said]
    source = Source(path=jsonl(tmp_path, {"messages": messages, "id": 7}), name="mine")
    (last,) = load(source)
    assert last == {"prompt": messages[:4], "completion": "a2", "id": 7, "answer": None, "source": "mine"}
    every = load(dataclasses.replace(source, options={"turns": "all", "append": "!"}))
    ends = [(len(r["prompt"]), r["prompt"][-1]["content"], r["completion"]) for r in every]
    assert ends == [(2, "u1!", "a1"), (4, "u2!", "a2")]
    assert messages[1]["content"] == "u1"  # what is found is not changed
    renamed = {"talk": messages, "prompt": None}
    columns = Source(path=jsonl(tmp_path, renamed, name="b.jsonl"), options={"fields": {"messages": "talk"}})
    with pytest.raises(ConfigError, match="'prompt' is NoneType"):
        load(columns)
    for wrong, why in (
        ([], "no assistant message after another one"),
        (messages[2:4], "no assistant message after another one"),
        ([{"from": "user"}], "'messages' is .* it must be a list of"),
    ):
        with pytest.raises(ConfigError, match=f"c.jsonl:1: .*{why}"):
            load(Source(path=jsonl(tmp_path, {"messages": wrong}, name="c.jsonl")))


# -- ArrayRecord


def array_record(path, records):
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def test_array_record(tmp_path):
    rows = [{"prompt": f"{i}é", "answer": i} for i in range(5)]
    for shard, part in (("0", rows[:3]), ("1", rows[3:])):
        array_record(tmp_path / f"train.array_record-0000{shard}-of-00002", [json.dumps(row).encode() for row in part])
    assert list(load(Source(path=str(tmp_path), name="mine"))) == [{**row, "source": "mine"} for row in rows]
    one = tmp_path / "test.arrayrecord"
    array_record(one, [json.dumps(rows[0]).encode(), b'{"prompt": '])
    with pytest.raises(ConfigError, match="test.arrayrecord record 1: not JSON"):
        load(Source(path=str(one)))
    array_record(one, [])
    with pytest.raises(ConfigError, match="test.arrayrecord has no rows"):
        load(Source(path=str(one)))
    shard = tmp_path / "train.array_record-00001-of-00002"
    for broken in (shard.read_bytes()[:-100], b""):
        shard.write_bytes(broken)
        with pytest.raises(ConfigError, match="00001-of-00002 is not an ArrayRecord file, or not all of it: [^\n]*$"):
            load(Source(path=str(tmp_path)))


# -- Pass rates


def test_rows_by_pass_rate(tmp_path):
    rates = [0.5, 1.0, 0.0, 0.25, 0.5, 0.75, 0.5, 1, 0.5]
    path = jsonl(tmp_path, *({"prompt": f"q{i}", "answer": i, "pass_rate": rate} for i, rate in enumerate(rates)))
    source = Source(path=path, name="mine", pass_rate=(0.25, 0.75))
    assert [row["answer"] for row in load(source)] == [0, 3, 4, 5, 6, 8]
    assert [row["answer"] for row in load(dataclasses.replace(source, limit=2))] == [0, 3]
    eased = dataclasses.replace(source, pass_rate=(), order="easy_first")
    mixture = Mixture([(eased, load(eased))], seed=3)
    drawn = [mixture[i] for i in range(18)]
    assert [row["pass_rate"] for row in drawn[:9]] == sorted(rates, reverse=True)
    assert drawn[:9] == drawn[9:]  # the same in each epoch
    ties = {tuple(r["answer"] for r in (Mixture([(eased, load(eased))], seed)[i] for i in range(3, 7))) for seed in range(9)}
    assert all(sorted(tie) == [0, 4, 6, 8] for tie in ties) and len(ties) > 2
    prints = {Mixture([(s, load(s))], 0).fingerprint for s in (source, eased, dataclasses.replace(source, pass_rate=()))}
    assert len(prints) == 3


def test_rows_without_a_pass_rate_are_refused(tmp_path):
    for rate in ({}, {"pass_rate": 1.5}, {"pass_rate": "high"}):
        source = Source(path=jsonl(tmp_path, {"prompt": "q", "answer": 1, **rate}), name="mine")
        with pytest.raises(ConfigError, match="source 'mine': no 'pass_rate' from 0 to 1 in the row {'prompt"):
            load(dataclasses.replace(source, pass_rate=(0.0, 1.0)))
        with pytest.raises(ConfigError, match="r1jax data pass-rate measures it"):
            Mixture([(dataclasses.replace(source, order="easy_first"), load(source))], 0)
    path = jsonl(tmp_path, {"prompt": "q", "answer": 1, "pass_rate": 0.5})
    with pytest.raises(ConfigError, match=r"no rows in split 'train' with a pass_rate in \[0.6, 1.0\]"):
        load(Source(path=path, pass_rate=(0.6, 1.0)))
    for wrong in ((0.5,), (0.6, 0.5), (-0.1, 1.0), (0.0, 1.1)):
        with pytest.raises(ConfigError, match="pass_rate is .* give"):
            Source(pass_rate=wrong)
