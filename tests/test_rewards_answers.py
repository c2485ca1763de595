"""What is taken for the answer, what is refused unread, the format, and totals: decided by hand, one line each."""

import time

import pytest

from r1jax import rewards
from r1jax.rewards.accuracy import accuracy
from r1jax.rewards.extract import final_answer, last_boxed
from r1jax.rewards.format import format as format_reward
from r1jax.rewards.guard import too_costly


@pytest.mark.parametrize(
    "completion, answer",
    [
        ("<think>no</think> <answer> 42 </answer>", "42"),
        ("42", "42"),
        ("so <answer>4</answer>, no: <answer>3</answer>", "3"),
        (r"\boxed{4} wait, \boxed{3}", "3"),
        (r"\boxed{3} <answer>4</answer> \boxed{5}", "4"),
        (r"<answer>it is \boxed{\frac{1}{2}}</answer>", r"\frac{1}{2}"),
        (r"\boxed{\boxed{4}}", "4"),
        (r"\boxed{3} and \boxed{4", "3"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"<think>\boxed{4}</think>", None),
        (r"<think>it is \boxed{4}", None),
        (r"<think>\boxed{4}</think> 5", "5"),
        (r"<think>a</think> 5 <think>\boxed{4}", "5"),
        ("<think>a</think> <answer></answer>", None),
        ("", None),
    ],
)
def test_final_answer(completion, answer):
    assert final_answer(completion) == answer


def test_many_open_boxes_take_linear_time():
    start = time.process_time()
    assert last_boxed(r"\boxed{1}" + r"\boxed{" * 100_000) == "1"
    assert time.process_time() - start < 2


def test_accuracy_explains():
    assert accuracy("", r"\boxed{41}", {"answer": 42}).why == "extracted '41', expected '42'"
    assert accuracy("", "<think>41", {"answer": 42}).why == "no answer after the thought, expected '42'"
    assert "tower of powers" in accuracy("", "9^9^9", {"answer": 42}).why
    assert "another unit" in accuracy("", r"\sqrt{2}\text{ cm}", {"answer": r"\sqrt{2}\text{ m}"}).why


@pytest.mark.parametrize("row", [{}, {"answer": ["4"]}, {"answer": None}, {"answer": " "}, {"answer": "9^9^9^9"}])
def test_a_row_without_a_usable_answer_is_an_error_not_a_zero(row):
    with pytest.raises(ValueError, match="answer"):
        accuracy("", "4", row)


def test_the_expected_answer_may_be_boxed_or_a_number():
    assert accuracy("", "4", {"answer": r"so \boxed{4}"}).value == 1
    assert accuracy("", "4", {"answer": 4}).value == 1
    assert accuracy("", "1/4", {"answer": 0.25}).value == 1


HOSTILE = [
    "9^9^9^9",
    "9^{9^{9}}",
    "9**9**9",
    "(10^9)!",
    "(10^{9})!",
    "99999!",
    "((9!)!)!",
    "3!!!!",
    "9^{99}!",
    "9^{999!}",
    r"\frac{10^9}{1}!",
    "10^{1000000000}",
    r"2^{1000\cdot1000\cdot1000}",
    "(9^{999})^{999}",
    "(x+1)^{100000}",
    "9^{9^9 x}",
    r"e^{e^{e^{e^{10}}}}",
    r"\exp(\exp(\exp(5)))",
    r"\sum_{i=1}^{10^9} i",
    r"\int_0^1 x^x dx",
    r"\binom{1000000000}{500000000}",
    "(" * 2000,
    "{" * 300 + "1" + "}" * 300,
    r"\sqrt{" * 100 + "2" + "}" * 100,
    r"\sqrt" * 100 + "2",
    "-" * 100 + "1",
    "0." + "1" * 900,
    "+".join("x" * 400),
    "a_" * 300 + "b",
    "x=y=" * 100 + "1",
]


@pytest.mark.parametrize("latex", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_latex_is_refused_before_parsing(latex):
    assert too_costly(latex)


@pytest.mark.parametrize(
    "latex",
    [
        r"\frac{\sqrt{3}}{2}",
        "x^{2025}",
        "e^{-x^2}",
        "2^{100}",
        "(x+1)^{10}",
        "n!",
        "(n+1)!",
        "20!",
        r"\binom{10}{3}",
        r"360^\circ",
    ],
)
def test_ordinary_latex_is_not_refused(latex):
    assert too_costly(latex) == ""


@pytest.mark.parametrize(
    "completion, why",
    [
        ("<think>a</think><answer>b</answer>", ""),
        ("<think>\na\n</think>\n\n<answer> b </answer>\n", ""),
        ("a</think><answer>b</answer>", "missing <think>"),
        ("<think>a<answer>b</answer>", "missing </think>"),
        ("<think>a</think>b", "missing <answer>"),
        ("<think>a</think><answer>b", "missing </answer>"),
        ("<think>a</think><think>a</think><answer>b</answer>", "2 times <think>"),
        ("<think>a</think><answer>b</answer><answer>b</answer>", "2 times <answer>"),
        ("<answer>b</answer><think>a</think>", "tags are out of order"),
        ("<think>a<answer>b</answer></think>", "tags are out of order"),
        ("Hi <think>a</think><answer>b</answer>", "text before <think>"),
        ("<think> </think><answer>b</answer>", "empty <think>"),
        ("<think>a</think> so <answer>b</answer>", "text between </think> and <answer>"),
        ("<think>a</think><answer>\n</answer>", "empty <answer>"),
        ("<think>a</think><answer>b</answer> bye", "text after </answer>"),
    ],
)
def test_format(completion, why):
    score = format_reward("", completion, {})
    assert (score.value, score.why) == (0.0 if why else 1.0, why)


def test_total_is_the_weighted_sum():
    scores = {"a": rewards.Score(1.0), "b": rewards.Score(0.5), "c": rewards.Score(9.0)}
    assert rewards.total(scores, {"a": 2.0, "b": -1.0}) == 1.5
    with pytest.raises(ValueError, match="weights name d, which was not scored"):
        rewards.total(scores, {"d": 1.0})


def test_reasoning_gym_scores_with_the_tasks_own_scorer():
    gym = pytest.importorskip("reasoning_gym")
    reward = rewards.load("reasoning_gym")
    entry = gym.create_dataset("countdown", size=1, seed=3)[0]
    row = {"task": "countdown", "entry": entry}
    # Any expression that reaches the target is right: a string comparison would refuse the second.
    assert reward("", f"<think>x</think><answer>{entry['metadata']['expression']}</answer>", row).value == 1.0
    assert reward("", f"<answer>({entry['metadata']['expression']})</answer>", row).value == 1.0
    assert reward("", "<answer>1 + 1</answer>", row).value < 0.1
    assert reward("", f"<think>{entry['metadata']['expression']}", row).value == 0.0
    with pytest.raises(ValueError, match="no 'task'"):
        reward("", "4", {"entry": entry})


def test_reasoning_gym_names_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(ValueError, match=r"r1jax\[reasoning-gym\]"):
        rewards.load("reasoning_gym")("", "4", {"task": "never_seen", "entry": {"answer": "4"}})
