import pytest

from r1jax.config import ConfigError
from r1jax.data.number_words import TEST_ROWS, in_words, rows


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (100, "one hundred"),
        (305, "three hundred five"),
        (762, "seven hundred sixty-two"),
        (1013, "one thousand thirteen"),
        (2740, "two thousand seven hundred forty"),
        (999_999, "nine hundred ninety-nine thousand nine hundred ninety-nine"),
    ],
)
def test_words(number, words):
    assert in_words(number) == words


def test_no_training_number_is_held_out():
    test = rows("test")
    train = rows("train", seed=3)
    held_out = {row["answer"] for row in test}
    assert len(held_out) == len(test) == TEST_ROWS
    assert not held_out & {train[i]["answer"] for i in range(5000)}


def test_rows():
    train = rows("train", digits=(3, 5), size=1000)
    drawn = list(train)
    assert {len(row["answer"]) for row in drawn} == {3, 5}
    assert 400 < sum(len(row["answer"]) == 3 for row in drawn) < 600
    assert all(row["prompt"] == in_words(int(row["answer"])) + " =" for row in drawn)
    assert drawn == list(rows("train", digits=(3, 5), size=1000)) != list(rows("train", digits=(3, 5), size=1000, seed=1))
    assert len(rows("test", digits=(3,))) == TEST_ROWS  # the fewest numbers to choose from


@pytest.mark.parametrize(
    ("split", "options", "says"), [("dev", {}, "dev"), ("train", {"digits": (2,)}, "3 to 6"), ("train", {"size": 0}, "size")]
)
def test_mistakes(split, options, says):
    with pytest.raises(ConfigError, match=says):
        rows(split, **options)
