import re

import pytest

from r1jax.config import ConfigError
from r1jax.data.arithmetic import TEST_ROWS, rows
from r1jax.data.tokenizer import byte_tokenizer


def problem(row):
    a, b = re.fullmatch(r"(\d+)\+(\d+)=", row["prompt"]).groups()
    return int(a), int(b)


def steps(row):
    """The trace as ((terms, stated sum), ...), and the stated answer. Terms are two digits and what the last step carries."""
    trace, answer = re.fullmatch(r"<think>(.*)</think><answer>(\d+)</answer>", row["completion"]).groups()
    stated = [int(s) for s in trace.split(" ")]
    carried = [0, *(s // 10 for s in stated[:-1])]
    digits = zip(*(map(int, reversed(str(n))) for n in problem(row)), strict=True)
    return [([*pair, carry], s) for pair, carry, s in zip(digits, carried, stated, strict=True)], answer


def test_the_example():
    row = next(r for r in rows("test") if r["prompt"] == "69+76=")
    assert row == {"prompt": "69+76=", "answer": "145", "completion": "<think>15 14</think><answer>145</answer>"}


@pytest.mark.parametrize("digits", [2, 3])
def test_clean_traces_are_right(digits):
    train = rows("train", digits=digits)
    for row in [*rows("test", digits=digits), *(train[i] for i in range(500))]:
        a, b = problem(row)
        assert len(str(a)) == len(str(b)) == digits
        trace, answer = steps(row)
        assert row["answer"] == answer == str(a + b)
        assert all(sum(terms) == stated for terms, stated in trace)


def test_no_training_problem_is_a_test_problem_in_either_order():
    test = {problem(r) for r in rows("test")}
    assert len(test) == TEST_ROWS
    train = rows("train", seed=3, noise=0.5)
    seen = {frozenset(problem(train[i])) for i in range(30_000)}
    assert len(seen) > 3400  # of 4095 pairs, 7/8 are on this side: nearly all come
    assert not seen & {frozenset(p) for p in test}


def test_a_row_is_a_function_of_seed_and_index():
    one, again, other = (rows("train", seed=s, noise=0.3) for s in (1, 1, 2))
    assert one[77] == again[77] and [one[i] for i in range(20)] != [other[i] for i in range(20)]
    assert rows("test", seed=1) == rows("test", seed=2, noise=0.9)
    assert one[77]["prompt"] == "54+51="  # the same in every version of Python


def test_noise_is_per_step_and_carries_on():
    train = rows("train", noise=0.3)
    wrong = total = 0
    for i in range(4000):
        trace, answer = steps(train[i])
        total += len(trace)
        wrong += sum(sum(terms) != stated for terms, stated in trace)
        (_, units), (_, last) = trace
        assert answer == str(last) + str(units % 10)
        assert train[i]["answer"] == str(sum(problem(train[i])))
    assert abs(wrong / total - 0.3) < 4 * (0.3 * 0.7 / total) ** 0.5


def test_a_forgotten_carry_is_the_only_mistake_of_forget_carry():
    train = rows("train", forget_carry=0.6)
    forgotten = carries = 0
    for i in range(4000):
        trace, _ = steps(train[i])
        (units, said), ((x, y, carry), last) = trace
        assert sum(units) == said and last in (x + y, x + y + carry)
        carries += carry
        forgotten += x + y + carry - last
    assert abs(forgotten / carries - 0.6) < 4 * (0.6 * 0.4 / carries) ** 0.5


def test_completions_are_short_in_bytes():
    tokenizer = byte_tokenizer()
    train = rows("train", noise=0.3)
    assert max(len(tokenizer.encode(train[i]["completion"])) for i in range(2000)) <= 13


@pytest.mark.parametrize(
    "options, said", [({"digits": 1}, "digits is 1"), ({"noise": 1.5}, "noise is 1.5"), ({"size": 0}, "size")]
)
def test_bad_options(options, said):
    with pytest.raises(ConfigError, match=said):
        rows("train", **options)
    with pytest.raises(ConfigError, match="no split 'validation'"):
        rows("validation")


def test_a_noisy_step_is_never_right_and_may_be_any_other_sum():
    train = rows("train", noise=1.0)
    stated = [step for i in range(400) for step in steps(train[i])[0]]
    assert all(sum(terms) != total for terms, total in stated)
    assert {total for _, total in stated} == set(range(20))
