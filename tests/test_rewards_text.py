"""Format, choice, exact and numeric answers, repetition and length: decided by hand, one line each."""

import time

import pytest

from r1jax.rewards.choice import choice
from r1jax.rewards.exact import exact, numeric
from r1jax.rewards.format import format as format_reward
from r1jax.rewards.format import tag_count
from r1jax.rewards.tokens import overlong, repetition

# -- Format

R1_ZERO, R1 = "<think>a</think> <answer>b</answer>", "<think>\na\n</think>\n\nSo b."


@pytest.mark.parametrize(
    "completion, zero, zero_lenient, r1, r1_lenient",
    [
        (R1_ZERO, 1, 1, 1, 1),
        (R1, 0, 0, 1, 1),
        ("a</think> b", 0, 0, 0, 1),  # a template pre-filled <think>, and whoever calls left it out
        ("a</think> <answer>b</answer>", 0, 1, 0, 1),
        ("Hi. <think>a</think> So <answer>b</answer> bye", 0, 1, 0, 1),
        ("<think>a</think> <answer>x</answer> no, <answer>b</answer>", 0, 1, 1, 1),
        ("<think>a<think>c</think> <answer>b</answer>", 0, 1, 0, 1),
        ("<think>a</think><answer>b", 0, 0, 1, 1),
        ("<think>a</think> b</answer>", 0, 0, 1, 1),
        ("<think>a</think><answer> </answer>", 0, 0, 1, 1),
        ("<think> </think> <answer>b</answer>", 0, 0, 0, 0),
        ("<think>a <answer>b</answer>", 0, 0, 0, 0),
        ("<think>a</think>\n", 0, 0, 0, 0),
        ("<answer>b</answer> <think>a</think>", 0, 0, 0, 0),
        ("</think> b <think>", 0, 0, 0, 0),
        ("<think>a</think> b </think>", 0, 0, 0, 0),
        ("b", 0, 0, 0, 0),
        ("", 0, 0, 0, 0),
    ],
)
def test_format_by_style_and_strictness(completion, zero, zero_lenient, r1, r1_lenient):
    def value(**options):
        score = format_reward("", completion, {}, **options)
        assert bool(score.why) == (score.value == 0)
        return score.value

    assert (value(), value(strict=False), value(style="r1"), value(style="r1", strict=False)) == (
        zero, zero_lenient, r1, r1_lenient,
    )  # fmt: skip


def test_tag_count_is_the_share_of_tags_that_stand_once():
    for completion, value in [(R1_ZERO, 1), (R1, 0.5), ("<think>a</think></think> b", 0.25), ("b", 0)]:
        assert tag_count("", completion, {}).value == value
    assert tag_count("", R1, {}, tags=("<think>", "</think>")).value == 1
    assert tag_count("", "<think></think></think>", {}).why == "not once: </think>, <answer>, </answer>"


# -- Choice

CITIES = ["London", "Paris", "New York", "All of the above"]
RIGHT = [  # final answers that choose B of CITIES
    "B", "b", "(B)", "(b)", "B.", "B)", "[B]", "**B**", "$B$", r"\text{B}", r"$\textbf{(B)}$", "（B）", "Ｂ", "Option B",
    "answer: B", "Paris", "paris", "Paris.", r"\text{Paris}", "B. Paris", "(B) Paris", "B: paris",
    "b) Paris", "B) because of the Seine",
    r"\boxed{B}", r"So it is \boxed{\text{(B)}}.", r"\boxed{Paris}", "<answer>B</answer>", "<answer> (B) Paris </answer>",
    "The answer is B", "The answer is: **B**.", "the correct answer is (B) because it has the Seine", "Answer: B",
    "The answer is Paris.", "The best option here is B, as shown", "The correct choice would be B", "I choose B.",
    "I'd go with (B)", "A is too far north. C is in America.\nThe answer is B",
    "First I thought the answer is A. Then I saw that the answer is B.",
    "It has the Seine.\n\nB", "It has the Seine.\n\n**B. Paris**",
    "答案是B", "答案：B", "所以答案应该是 B。", "故选B。", "我选择（B）", "正确选项为B",
]  # fmt: skip
WRONG = [  # that choose another, none, or more than one
    "", "A", "C", "(A)", "London", "Z", "E", "BB", "B2", "A B", "A or B", "B or C", "(B) or (C)", "The answer is B or C",
    "B, C", "The answer is A and B", "B. London", "a", "a city", "The answer is a city on the Seine", "The answer is not B",
    "I would not choose B", "不选B", "答案不是B", "B is wrong", "Paris or London", "It is not Paris", "Not B",
    "B is nice.\nThe answer is C", "The answer is Berlin", "Bern", r"\boxed{A} or B", "<think>The answer is B</think>",
    "<think>B", "The answer is B.\nNo, the answer is unclear", "All of the above", "选项B是错的，答案是C",
]  # fmt: skip


@pytest.mark.parametrize("answer", RIGHT)
def test_the_right_choice(answer):
    row = {"answer": "B", "options": CITIES}
    score = choice("", answer, row)
    assert score.value == 1, score
    assert score.why == "chose B, expected B"


@pytest.mark.parametrize("answer", WRONG)
def test_the_wrong_choice(answer):
    score = choice("", answer, {"answer": "B", "options": CITIES})
    assert score.value == 0, score


def test_the_article_is_no_letter():
    row = {"answer": "A", "options": CITIES}
    for answer, value in [
        ("The answer is a city", 0), ("The answer is A city", 0), ("Answer: A good guess is hard", 0), ("I choose a city", 0),
        ("The answer is A", 1), ("The answer is A because it is north", 1), ("The answer is (A) city", 1), ("a", 1), ("A.", 1),
        ("The answer is A, the city on the Thames", 1), ("The answer is A. It is north", 1),
    ]:  # fmt: skip
        assert choice("", answer, row).value == value, answer


@pytest.mark.parametrize(
    "answer, options, completion, value",
    [
        ("B", None, "(B)", 1),
        ("(B)", None, "B", 1),
        ("J", None, "J", 1),
        ("B", None, "Paris", 0),
        ("Paris", CITIES, "B", 1),
        ("paris", CITIES, "Paris", 1),
        (1, CITIES, "B", 1),
        (0, CITIES, "B", 0),
        ("4", ["3", "4", "5"], "4", 1),
        ("4", ["3", "4", "5"], r"\boxed{4}", 1),
        ("4", [3, 4, 5], "B", 1),
        (2, [3, 4, 5], "C", 1),
        ("B", ["A", "C", "D", "K"], "C", 0),  # a letter is the option's letter, whatever the texts are
        ("B", ["A", "C", "D", "K"], "B", 1),
        ("M", ["m", "M", "x"], "M", 1),  # beyond the letters A to C: a text
        ("M", ["m", "M", "x"], "m", 0),
        ("y", ["x", "y", "z"], "The answer is y", 1),
        ("x^2", ["x^2", "x^3"], "$x^2$", 1),
        ("B", ["if a:\n  b", "if b:\n  a"], "if b:\n  a", 1),
        ("B", ["m/s", "km", "KM"], "km", 1),
        ("B", ["m/s", "km", "KM"], "KM", 0),
        ("C", ["one", "two", "I am."], "I am", 1),
    ],
)
def test_rows_name_the_right_option_by_letter_text_or_number(answer, options, completion, value):
    row = {"answer": answer} if options is None else {"answer": answer, "options": options}
    assert choice("", completion, row).value == value


@pytest.mark.parametrize(
    "row",
    [
        {}, {"answer": None}, {"answer": "Paris"}, {"answer": 1}, {"answer": "E", "options": CITIES},
        {"answer": 4, "options": CITIES},
        {"answer": "Rome", "options": CITIES}, {"answer": True, "options": CITIES}, {"answer": "B", "options": "AB"},
        {"answer": 1, "options": [1, 2, 3]}, {"answer": "x", "options": ["x", "x"]},
    ],
)  # fmt: skip
def test_a_row_that_names_no_option_or_two_is_an_error(row):
    with pytest.raises(ValueError, match=r"^row\['(answer|options)'\]"):
        choice("", "B", row)


def test_long_answers_take_linear_time():
    start = time.process_time()
    for text in ("answer " * 30_000, "B" * 200_000, "the answer is" * 20_000, "(" * 200_000, "选" * 100_000, "B\n" * 50_000):
        choice("", text, {"answer": "B", "options": CITIES})
    assert time.process_time() - start < 3


# -- Exact and numeric


@pytest.mark.parametrize(
    "answer, expected, ignore_case, value",
    [
        ("<think>no</think> yes ", "yes", False, 1),
        ("Yes", "yes", False, 0),
        ("Yes", "yes", True, 1),
        ("a  b\n c", "a b c", False, 1),
        ("ab", "a b", False, 0),
        (r"\boxed{7}", 7, False, 1),
        ("7.0", 7, False, 0),
        ("<answer>two</answer>", ["2", "two"], False, 1),
        ("three", ["2", "two"], False, 0),
        ("yes.", "yes", False, 0),
        ("<think>yes", "yes", False, 0),
    ],
)
def test_exact(answer, expected, ignore_case, value):
    assert exact("", answer, {"answer": expected}, ignore_case=ignore_case).value == value


@pytest.mark.parametrize(
    "answer, expected, options, value",
    [
        ("3.1416", 3.14159, {}, 1),
        ("3.14", 3.14159, {}, 0),
        ("3.14", 3.14159, {"rel_tol": 1e-3}, 1),
        ("1/3", 0.33333, {}, 1),
        ("101", "100", {"rel_tol": 0.01}, 1),  # on the edge
        ("99", "100", {"rel_tol": 0.01}, 1),
        ("101.01", "100", {"rel_tol": 0.01}, 0),
        ("0.30000000000000004", 0.3, {"rel_tol": 0.0}, 0),
        ("0.05", 0, {"abs_tol": 0.05}, 1),
        ("0.051", 0, {"abs_tol": 0.05}, 0),
        ("1e-9", 0, {}, 0),
        ("-5", 5, {}, 0),
        ("50%", 0.5, {}, 1),
        ("1,234.5", 1234.5, {}, 1),
        (r"\boxed{\frac{1}{4}}", "0.25", {}, 1),
        ("<answer>42 km</answer>", 42, {}, 1),
        ("So we have 12 + 30 = 42.", 42, {}, 1),  # the last number counts
        ("42, not 41", 42, {}, 0),
        ("The mass is 5.97e24 kg, about", "5.972e24", {"rel_tol": 0.001}, 1),
        ("no number", 42, {}, 0),
        ("<think>42", 42, {}, 0),
    ],
)
def test_numeric(answer, expected, options, value):
    score = numeric("", answer, {"answer": expected}, **options)
    assert score.value == value, score


@pytest.mark.parametrize("answer", [None, "", [], [None], {"a": 1}, " "])
def test_rows_without_an_answer_to_compare_with_are_errors(answer):
    with pytest.raises(ValueError, match="exact compares with"):
        exact("", "1", {"answer": answer})
    with pytest.raises(ValueError, match="numeric compares with a number"):
        numeric("", "1", {"answer": answer})


# -- Tokens


def test_overlong_is_dapos_equation_13():
    # Eq. 13 with L_max 20480 and L_cache 4096, written again.
    def by_hand(count):
        if count <= 16384:
            return 0.0
        return (16384 - count) / 4096 if count <= 20480 else -1.0

    for count in (0, 1, 16383, 16384, 16385, 18432, 20479, 20480, 20481, 99999):
        score = overlong("", "one character a token it is not", {"_tokens": [7] * count}, max_tokens=20480, buffer=4096)
        assert score.value == by_hand(count)
    assert by_hand(18432) == -0.5


@pytest.mark.parametrize(
    "tokens, n, value",
    [
        ([1, 2, 3, 4], 2, 0),
        ([1, 2, 1, 2, 1], 2, -0.5),  # 12 21 12 21: two of four stood before
        ([1, 1, 1, 1], 1, -0.75),
        ([1, 2, 3, 1, 2, 3], 3, -0.25),  # 123 231 312 123
        ([1, 2], 3, 0),
        ([], 1, 0),
        ([5] * 1020, 20, -1000 / 1001),
    ],
)
def test_repetition_is_the_share_of_ngrams_that_stood_before(tokens, n, value):
    assert repetition("", "", {"_tokens": tokens}, n=n).value == pytest.approx(value)


@pytest.mark.parametrize("reward", [lambda *args: overlong(*args, max_tokens=8, buffer=4), repetition])
def test_without_tokens_there_is_an_error_not_a_count_of_characters(reward):
    with pytest.raises(ValueError, match="the row has no '_tokens'"):
        reward("", "text", {})
