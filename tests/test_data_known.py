"""Rows as the public data sets have them, of which a few are made here, become prompts that their own rewards can grade."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from r1jax import rewards
from r1jax.config import ConfigError, Source
from r1jax.data.known import KNOWN
from r1jax.data.sources import load, named
from r1jax.rewards.code import last_block

FOUND = {
    "gsm8k": {"question": "12 eggs, 5 sold?", "answer": "12-5 = <<12-5=7>>7 are left.\n#### 1,007"},
    "math-500": {"problem": "Half of one?", "solution": r"\boxed{\frac12}", "answer": r"\frac12", "subject": "Algebra"},
    "aime": {"ID": "2024-I-1", "Problem": "How many minutes?", "Solution": "...", "Answer": "073"},
    "aime-2025": {"problem": "How many hours?", "answer": "70", "id": "0"},
    "gpqa-diamond": {
        "Question": "Which is a noble gas?\n",
        "Correct Answer": "Argon",
        "Incorrect Answer 1": "Iron ",
        "Incorrect Answer 2": "Gold",
        "Incorrect Answer 3": "Zinc",
        "Explanation": "",
    },
    "deepscaler": {"problem": "2^3?", "answer": "8", "solution": "Two cubed."},
    "humaneval": {
        "task_id": "HumanEval/0",
        "prompt": 'from math import floor\n\n\ndef half(x: float) -> int:\n    """Half of x, rounded down."""\n',
        "canonical_solution": "    return floor(x / 2)\n",
        "test": "def check(candidate):\n    assert candidate(5) == 2\n    assert candidate(-1) == -1\n",
        "entry_point": "half",
    },
}


def row_of(tmp_path, name, found, **options):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(found) + "\n")
    (row,) = load(Source(path=str(path), name=name, options={"known": name, **options}))
    return row


@pytest.mark.parametrize(
    ("name", "prompt", "answer", "right", "wrong"),
    [
        ("gsm8k", "12 eggs, 5 sold?", "1,007", "<answer>1007</answer>", "<answer>7</answer>"),
        ("math-500", "Half of one?", r"\frac12", r"so \boxed{\frac{1}{2}}", r"so \boxed{2}"),
        ("aime", "How many minutes?", "73", r"\boxed{073}", r"\boxed{730}"),
        ("aime-2025", "How many hours?", "70", r"\boxed{70}", r"\boxed{71}"),
        ("deepscaler", "2^3?", "8", r"\boxed{8}", r"\boxed{6}"),
    ],
)
def test_mathematics(tmp_path, name, prompt, answer, right, wrong):
    row = row_of(tmp_path, name, FOUND[name])
    assert (row["prompt"], row["answer"]) == (prompt, answer)
    grade = rewards.load(KNOWN[name].reward)
    assert [grade(prompt, text, row).value for text in (right, wrong)] == [1.0, 0.0]


def test_options_are_shuffled_and_the_letter_follows(tmp_path):
    found = FOUND["gpqa-diamond"]
    row = row_of(tmp_path, "gpqa-diamond", found)
    assert sorted(row["options"]) == ["Argon", "Gold", "Iron", "Zinc"]
    assert row["prompt"].startswith("Which is a noble gas?\n\nA) " + row["options"][0] + "\nB) ")
    assert row["options"]["ABCD".index(row["answer"])] == "Argon"
    assert row["options"] == ["Gold", "Argon", "Zinc", "Iron"]  # in every run and version of Python
    answers = []
    for i in range(40):
        row = row_of(tmp_path, "gpqa-diamond", found | {"Question": f"{i}?"})
        assert row == row_of(tmp_path, "gpqa-diamond", found | {"Question": f"{i}?"})
        answers.append(row["answer"])
        grade = rewards.load("choice")
        assert [grade(None, f"Answer: {letter}", row).value for letter in "ABCD"] == [x == row["answer"] for x in "ABCD"]
    assert all(answers.count(letter) > 3 for letter in "ABCD")


def test_a_function_to_complete(tmp_path):
    found = FOUND["humaneval"]
    row = row_of(tmp_path, "humaneval", found)
    assert found["prompt"].strip() in row["prompt"]
    answer = row["answer"]
    assert answer == {"check": found["test"], "entry_point": "half", "setup": "from math import floor\n\n\n"}
    # The gold answer passes; so does one without the imports that stand before the function, and a wrong one does not.
    for text, right in (
        (row["gold"], True),
        ("```python\ndef half(x):\n    return floor(x / 2)\n```", True),
        ("```python\ndef half(x):\n    return x // 3\n```", False),
    ):
        there = {}
        exec(answer["setup"] + last_block(text) + "\n" + answer["check"], there)
        try:
            there["check"](there["half"])
        except AssertionError:
            assert not right
        else:
            assert right


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("gsm8k", {"answer": "7"}, "the answer '7' has no line '#### NUMBER'"),
        ("math-500", {"problem": None}, "no 'problem' or 'Problem' or 'question'"),
        ("aime", {"Answer": "1/2"}, "the answer '1/2' is no whole number from 0 to 999"),
        ("gpqa-diamond", {"Incorrect Answer 2": None}, "no 'Incorrect Answer 2', or not the text it should be (it"),
        ("humaneval", {"entry_point": "third"}, "the prompt does not define the entry point 'third'"),
        ("gsm9k", {}, "options.known is 'gsm9k'; known are gsm8k, math-500"),
    ],
)
def test_a_row_of_another_layout_is_refused(tmp_path, name, change, said):
    with pytest.raises(ConfigError) as error:
        row_of(tmp_path, name, FOUND.get(name, {}) | change)
    assert "rows.jsonl:1: " in str(error.value) and said in str(error.value) and "\n" not in str(error.value)


def test_columns_of_other_names_and_a_request_behind_the_prompt(tmp_path):
    found = {"query": "1+1?", "answer": "so\n#### 2"}
    row = row_of(tmp_path, "gsm8k", found, fields={"question": "query"}, append=" Put the answer in \\boxed{}.")
    assert (row["prompt"], row["answer"]) == ("1+1? Put the answer in \\boxed{}.", "2")


def test_the_folder_of_a_known_set_is_taken_where_there_is_one(tmp_path):
    rows = {"main/test-00000-of-00001": 2, "socratic/test-00000-of-00001": 1}
    for name, count in rows.items():
        (tmp_path / name).parent.mkdir()
        table = pyarrow.Table.from_pylist([FOUND["gsm8k"]] * count)
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet")
    source = Source(path=str(tmp_path), split="test", options={"known": "gsm8k"})
    assert len(load(source)) == 2


@pytest.mark.parametrize("name", KNOWN)
def test_names_on_the_command_line(name):
    source, known = named(name, limit=5), KNOWN[name]
    assert (source.path, source.split, source.limit) == (known.path, known.split, 5)
    assert source.rewards == {known.reward: 1.0} and source.options == {"known": name} and source.name == name
    copy = named(f'elsewhere/copy{{"known":"{name}"}}', reward="mine.py:f")
    assert (copy.path, copy.split, copy.rewards) == ("elsewhere/copy", known.split, {"mine.py:f": 1.0})
    assert named(f'copy.jsonl{{"known":"{name}","test_share":0.1}}').split == "test"
    assert named(f'copy.jsonl{{"known":"{name}"}}').split == "train"
