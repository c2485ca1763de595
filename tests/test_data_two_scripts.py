import re

import pytest

from r1jax.config import ConfigError
from r1jax.data import arithmetic, two_scripts
from r1jax.rewards.accuracy import accuracy
from r1jax.rewards.format import format
from r1jax.rewards.language import language


@pytest.mark.parametrize(
    ("n", "en", "zh"),
    [(0, "zero", "零"), (9, "nine", "九"), (10, "ten", "十"), (15, "fifteen", "十五"), (20, "twenty", "二十"),
     (47, "forty-seven", "四十七"), (99, "ninety-nine", "九十九")],
)  # fmt: skip
def test_numbers_in_both_languages(n, en, zh):
    assert (two_scripts.in_language(n, "en"), two_scripts.in_language(n, "zh")) == (en, zh)


def scores(row):
    return [f(row["prompt"], row["completion"], row).value for f in (accuracy, format, language)]


def test_the_gold_answers_earn_every_reward_and_no_problem_is_trained_on():
    test, train = two_scripts.rows("test"), two_scripts.rows("train")
    assert len(test) == len({row["prompt"][3:] for row in test}) == two_scripts.TEST_ROWS
    assert all(scores(row) == [1, 1, 1] for row in test[:60])
    asked = {row["prompt"][3:] for row in test}
    seen = [train[i] for i in range(1000)]
    plain = arithmetic.rows("train")
    assert not ({row["prompt"][3:] for row in seen} | {plain[i]["prompt"] for i in range(1000)}) & asked
    assert 400 < sum(row["target_language"] == "zh" for row in seen) < 600
    assert all(row["prompt"].startswith(row["target_language"]) for row in seen)


def test_the_thoughts_are_the_digits_sums_in_words():
    row = next(r for r in two_scripts.rows("test") if r["prompt"].startswith("en"))
    a, b = map(int, re.findall(r"\d+", row["prompt"]))
    ones = a % 10 + b % 10
    tens = a // 10 + b // 10 + ones // 10
    said = f"so {two_scripts.in_language(ones, 'en')} so {two_scripts.in_language(tens, 'en')}"
    assert row["completion"] == f"<think>{said}</think><answer>{a + b}</answer>"


def test_mistakes_and_languages_are_as_frequent_as_asked():
    plain, mixed = two_scripts.rows("train"), two_scripts.rows("train", mixed=0.3, noise=0.2)
    assert mixed[7] == two_scripts.rows("train", mixed=0.3, noise=0.2)[7] != two_scripts.rows("train", mixed=0.3, seed=1)[7]
    both = [scores(mixed[i]) for i in range(1000)]
    assert all(scores(plain[i]) == [1, 1, 1] for i in range(50))
    # Two steps, each in the other language at 0.3: both in the right one at 0.49.
    assert 0.44 < sum(s[2] == 1 for s in both) / 1000 < 0.54
    assert 0.55 < sum(s[0] for s in both) / 1000 < 0.85
    switched = [two_scripts.rows("train", mixed=1.0)[i] for i in range(20)]
    assert all(language(r["prompt"], r["completion"], r).value == 0 for r in switched)


def test_numbers_to_join_have_no_thought():
    row = two_scripts.names("train")[1]
    assert row["completion"] == row["answer"] == two_scripts.in_language(int(row["prompt"][3:]), row["target_language"])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: two_scripts.rows("dev"), "no split 'dev'"),
        (lambda: two_scripts.rows("train", mixed=1.5), "mixed is 1.5"),
        (lambda: two_scripts.rows("train", digits=1), "digits is 1"),
        (lambda: two_scripts.rows("train", size=0), "size is 0"),
        (lambda: two_scripts.names("test"), "no split 'test'"),
    ],
)
def test_options_that_cannot_be(call, said):
    with pytest.raises(ConfigError, match=said):
        call()
