"""The rules by which an answer can be read, each with an answer that keeps it and one that breaks it by as little as can be."""

import pytest

from r1jax.config import ConfigError, Readable
from r1jax.data.readable import fault, in_r1_style, repeated, thought_of

ROW = {"prompt": "What is 7 + 8?", "answer": "15"}


def broken(completion: str, row: dict = ROW, **rules) -> str | None:
    found = fault(row, completion, Readable(**rules))
    return found and found[0]


def turn(thought: str, answer: str = "15") -> str:
    return f"<think>{thought}</think> <answer>{answer}</answer>"


PLAIN = turn("I add seven and eight.\n\nThat makes fifteen.")


def test_a_plain_answer_keeps_all_rules():
    assert broken(PLAIN) is None
    assert broken("Fifteen.") is None  # without a thought
    assert broken(turn("七加八得十五。"), {"prompt": "七加八是多少?"}) is None


@pytest.mark.parametrize(
    ("completion", "why"),
    [
        (PLAIN.replace("</think>", ""), "a thought that does not begin or end"),
        (PLAIN.replace("<think>", ""), "a thought that does not begin or end"),
        ("</think>a<think>", "a thought that does not begin or end"),
        (PLAIN + "<think>more</think>", "2 times <think>"),
        (turn("seven \ufffd eight"), "bytes that are no text"),
        (turn("seven \x07 eight"), "the character U+0007"),
        (turn("seven \ue000 eight"), "the character U+E000"),
    ],
)
def test_what_no_person_can_read(completion, why):
    assert fault(ROW, completion, Readable(language=None)) == ("unreadable", why)
    assert broken(turn("tabs\tand\r\nline breaks")) is None


def test_languages_are_not_mixed():
    mixed = turn("I add seven and eight. 然后我们得到十五。")
    assert broken(mixed) == "mixed language"
    assert broken(mixed, language=None) is None
    assert broken(mixed, language=0.5) is None  # 5 of 5 + 8/1.6
    assert broken(PLAIN, {**ROW, "target_language": "zh"}) == "mixed language"


def test_paragraphs_end_at_empty_lines():
    long = "one two three four\nfive six"
    assert broken(turn(f"{long}\n \nseven"), paragraph=6) is None
    assert broken(turn(f"{long}\n \nseven"), paragraph=5) == "long paragraph"
    assert broken(turn("short", "a b c d e f g h"), paragraph=5) is None  # the answer may be long
    zh = {"prompt": "问?", "answer": ""}
    assert broken(turn("一二三四五六七八"), zh, paragraph=5) is None  # 8 / 1.6
    assert broken(turn("一二三四五六七八九"), zh, paragraph=5) == "long paragraph"
    assert broken(turn(long * 200), paragraph=0, repetition=1.0) is None


def test_code_blocks_are_for_the_answer():
    code = "\n```python\nprint(7 + 8)\n```\n"
    assert broken(turn(f"I run it.{code}")) == "code in the thought"
    assert broken(turn(f"I run it.{code}"), code=False) is None
    assert broken(turn("I run `7 + 8` in line.", code)) is None


def test_repetition_counts_runs_that_stood_earlier():
    assert repeated("a b c d", 5) == 0
    assert repeated("a b c a b c", 2) == pytest.approx(2 / 5)  # of ab bc ca ab bc, two
    loop = turn("and so on " * 20)
    assert broken(loop, repeated_words=3) == "repetition"
    assert broken(loop, repeated_words=3, repetition=1.0) is None
    assert broken(turn("七八" * 30), {"prompt": "问?"}, repeated_words=3) == "repetition"


def test_the_style_of_the_released_model():
    assert in_r1_style("<think> so \n</think> <answer> 15 </answer>") == "<think>\nso\n</think>\n\n15"
    assert thought_of("<think> so </think>x") == " so " and thought_of("x") == ""


@pytest.mark.parametrize("rules", [{"language": 1.1}, {"repetition": -0.1}, {"paragraph": -1}, {"repeated_words": 0}])
def test_limits_that_cannot_be(rules):
    with pytest.raises(ConfigError, match="readable"):
        Readable(**rules)
