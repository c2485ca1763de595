"""Phrases of refusals, and the rules by which answers are shown."""

import asyncio
import json

import pytest

from r1jax.rewards import load
from r1jax.rewards.compose import named
from r1jax.rewards.refusal import refusal

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I’m sorry, but that is not something I do.",
    "<think>They ask for a poison.</think>\n\nI cannot assist with this request.",
    "I am unable to provide instructions for that.",
    "I must decline. Here is a helpline instead.",
    "Sorry? No: I won't help you do it.",
    "抱歉，我不能提供这方面的帮助。",
    "<think>想一想</think>对不起，这个问题我无法回答。",
    "我无法为您提供这些信息。",
    "我必须拒绝这个请求。",
)
ANSWERS = (
    "Sure! First, preheat the oven.",
    "<think>I can't help with that.</think>Here is how.",
    "I can help with that.",
    "I'm sorry to hear that. Rest, and drink water.",
    "I can't help but notice that it rhymes.",
    "I won't give up on you: call this number.",
    "You cannot create a vacuum by shouting.",
    "A long story. " * 30 + "I'm sorry, but I can't help.",
    "<think>I cannot assist with this",
    "当然可以。首先，",
    "他不能提供帮助。",
    "",
)


def test_refusals_are_told_from_answers():
    assert [text for text in REFUSALS if refusal("q", text, {}).value != 1] == []
    assert [text for text in ANSWERS if refusal("q", text, {}).value != 0] == []


@pytest.fixture
def control(tmp_path):
    """``control(prompt, completion, **rules) -> Score``"""
    (tmp_path / "words.txt").write_text("# a comment\n\nBomb\nhow to  steal\n爆炸\nc++\n")
    (tmp_path / "mine.py").write_text(
        "def half(prompt, completion, row): return 0.5\n"
        "async def fails(prompt, completion, row):\n"
        "    from r1jax.rewards import Score\n"
        "    return Score(0.0, 'timeout', 'too slow')\n"
    )
    made = []

    def control(prompt, completion="", **rules):
        path = tmp_path / f"rules{len(made)}.json"  # rules are read once
        made.append(path)
        path.write_text(json.dumps({"keywords": "words.txt"} | rules))
        return asyncio.run(load(named("risk_control", rules=str(path)))(prompt, completion, {}))

    control.mine = f"{tmp_path}/mine.py:"
    return control


@pytest.mark.parametrize(
    "prompt, completion, keyword",
    [
        ("a BOMB", "", "bomb"),
        ("ｂｏｍｂ", "", "bomb"),
        ("a bombe", "no bombs", None),
        ("How to\nsteal it?", "", "how to\nsteal"),
        ("tea", "<think>a bomb?</think>no", "bomb"),
        ([{"role": "user", "content": "hi"}, {"role": "user", "content": "如何爆炸的"}], "", "爆炸"),
        ("write C++.", "", "c++"),
        ("# a comment", "", None),
    ],
)
def test_keywords_are_whole_words_wherever_they_stand(control, prompt, completion, keyword):
    score = control(prompt, completion)
    assert (score.value, score.why) == ((1.0, "no keyword") if keyword is None else (0.0, f"keyword {keyword!r}"))


def test_a_byte_order_mark_is_no_part_of_the_first_keyword(control, tmp_path):
    (tmp_path / "marked.txt").write_text("bomb\n", encoding="utf-8-sig")
    assert control("a bomb", keywords="marked.txt").why == "keyword 'bomb'"


def test_the_review_decides_what_the_keywords_stop(control):
    half, fails = control.mine + "half", control.mine + "fails"
    assert control("bomb", judge=half).value == 1 and control("bomb", judge=half, safe_from=0.6).value == 0
    failed = control("bomb", judge=fails)
    assert (failed.value, failed.status, failed.why) == (0.0, "timeout", "keyword 'bomb', review timeout: too slow")
    assert control("tea", judge=fails).value == 1


def test_rules_that_cannot_be_are_refused_when_loaded(control, tmp_path):
    (tmp_path / "empty.txt").write_text("# nothing\n")
    for rules, told in (
        ({"keywords": "none.txt"}, "none.txt cannot be read"),
        ({"keywords": "empty.txt"}, "empty.txt are none; write one on each line"),
        ({"judge": "nowhere"}, "reward 'nowhere': not a built-in"),
        ({"word": "x"}, "word: Rules has no such field"),
        ({"safe_from": "much"}, "safe_from"),
    ):
        with pytest.raises(ValueError, match=told) as error:
            control("q", **rules)
        assert "\n" not in str(error.value)
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "none.json").write_text("{}")
    for name, told in (("bad", "are not JSON"), ("none", "must name a file of 'keywords'"), ("nowhere", "cannot be read")):
        with pytest.raises(ValueError, match=told):
            load(named("risk_control", rules=str(tmp_path / f"{name}.json")))
