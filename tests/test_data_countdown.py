"""Countdown: every problem has the solution it states, and the reward takes right expressions and nothing else."""

import itertools
import re
from fractions import Fraction

import pytest

from r1jax.config import ConfigError
from r1jax.data.countdown import TARGETS, TEST_ROWS, evaluate, rows, solved

ROW = {"numbers": [19, 36, 55, 7], "target": 65}


def reaches(numbers: tuple[Fraction, ...], target: int) -> bool:
    """Whether any expression of all the numbers has the value ``target``: all pairs, all operations, exhaustively."""
    if len(numbers) == 1:
        return numbers[0] == target
    for i, j in itertools.permutations(range(len(numbers)), 2):
        rest = tuple(n for k, n in enumerate(numbers) if k not in (i, j))
        a, b = numbers[i], numbers[j]
        for value in [a + b, a - b, a * b, *([a / b] if b else [])]:
            if reaches((*rest, value), target):
                return True
    return False


def test_a_row():
    row = rows("train", seed=0)[0]
    assert [int(n) for n in re.findall(r"\d+", row["prompt"])] == [*row["numbers"], row["target"], 1, 2, 3]
    # The same in every version of Python.
    assert (row["numbers"], row["target"], row["answer"]) == ([16, 65, 52], 29, "65 - (52 - 16)")
    assert rows("train")[7] == rows("train", size=8)[7] != rows("train", seed=1)[7]


def test_every_problem_has_the_solution_it_states():
    drawn = [*rows("test"), *(rows("train", numbers=(3, 4, 6))[i] for i in range(300))]
    for row in drawn:
        assert row["target"] in TARGETS
        assert solved("", f"<answer>{row['answer']}</answer>", row).value == 1
        assert solved("", f"<answer>{row['answer']}</answer>", row | {"target": row["target"] + 1}).value == 0
    assert {len(row["numbers"]) for row in drawn} == {3, 4, 6}
    signs = "".join(row["answer"] for row in drawn)
    assert min(signs.count(sign) for sign in "+-*/") > 10
    assert all(reaches(tuple(map(Fraction, row["numbers"])), row["target"]) for row in drawn[:10])


def test_no_training_problem_is_held_out_in_any_order():
    def key(row):
        return tuple(sorted(row["numbers"])), row["target"]

    test, train = rows("test", numbers=(3,)), rows("train", numbers=(3,), seed=3)
    held_out = {key(row) for row in test}
    assert len(held_out) == len(test) == TEST_ROWS
    assert not held_out & {key(train[i]) for i in range(5000)}


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("(55 - 19) + (36 - 7)", True),
        ("55-19+36-7", True),
        ("-7 - 19 +\n36 + 55", True),
        ("(55 - 19) + (36 - 7) + 0", False),  # a number that is not there
        ("55 + (36 - 7) / 1 - 19", False),
        ("55 - 19 + 36", False),  # one is missing
        ("55 + 36 - 7 - 19 + 7 - 7", False),  # one is used again
        ("55 + 36 - 7 + 19", False),  # another value
        ("55 - 19 + 36 - 7 = 65", False),
        ("65", False),
        ("the answer is 55 - 19 + 36 - 7", False),
        ("5519 + 367", False),  # digits, glued together
        ("(55 - 19) + (36 - 7", False),
        ("55 / (36 - 36) + 19 - 7", False),
        ("", False),
    ],
)
def test_what_earns_the_reward(answer, right):
    score = solved("", f"<think>55 - 19 + 36 - 7</think> <answer>{answer}</answer>", ROW)
    assert score.value == right and score.status == "ok" and score.why


def test_the_value_is_exact():
    row = {"numbers": [1, 3, 3], "target": 1}
    assert solved("", "<answer>1 / 3 * 3</answer>", row).value == 1
    assert solved("", "<answer>8 / (3 - 8 / 3)</answer>", {"numbers": [3, 3, 8, 8], "target": 24}).value == 1
    assert evaluate("1 / 3") == (Fraction(1, 3), [1, 3])
    big = {"numbers": [10**20, 1, 10**20], "target": 0}  # in floats 1e20 + 1 - 1e20 is 0
    assert solved("", f"<answer>{10**20} + 1 - {10**20}</answer>", big).value == 0


@pytest.mark.parametrize("text", ["9" * 199, "(" * 200, "-" * 199 + "1", "((" * 50 + "1" + "))" * 50, "*".join(["9" * 9] * 19)])
def test_a_hostile_expression_is_refused_or_has_a_value_at_once(text):
    assert solved("", f"<answer>{text}</answer>", ROW).value == 0


REFUSED = ["__import__('os')", "1e9", "0x10", "1_0", "012", "1,2", "()", "2 ** 3", "7 // 2", "2(3)", "~1", "9" * 201]


@pytest.mark.parametrize("text", REFUSED)
def test_only_arithmetic_is_parsed(text):
    with pytest.raises(ValueError):
        evaluate(text)


@pytest.mark.parametrize(
    ("split", "options", "says"), [("dev", {}, "dev"), ("train", {"numbers": (2,)}, "3 to 6"), ("train", {"size": 0}, "size")]
)
def test_mistakes(split, options, says):
    with pytest.raises(ConfigError, match=says):
        rows(split, **options)
