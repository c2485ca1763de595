"""Which sampled answers become rows to train on."""

from __future__ import annotations

import pytest

from r1jax.config import ConfigError, Readable, RejectionSampling, Sampling, Source
from r1jax.data import selection
from r1jax.rewards import Score

MATH = Source(name="math", rewards={"accuracy": 1.0, "format": 0.5})
CODE = Source(name="code", rewards={"code": 1.0})


def stage(**changes) -> RejectionSampling:
    settings = {"init": "m", "sources": (MATH, CODE), "sampling": Sampling(max_new_tokens=9)}
    return RejectionSampling(**settings | changes)


def verdict(settings, scores: dict[str, float | Score], text="<think>so</think>ok", finish="stop", source="math"):
    row = {"prompt": "what?", "answer": "ok", "source": source}
    scores = {name: s if isinstance(s, Score) else Score(s, why="because") for name, s in scores.items()}
    found = selection.verdict(settings, row, text, scores, finish)
    return found and found[0]


def test_an_answer_is_kept_that_is_right_whole_and_readable():
    right = {"accuracy": 1.0, "format": 0.0}
    assert verdict(stage(), right) is None
    assert verdict(stage(), right, finish="stop_string") is None
    assert verdict(stage(), {"accuracy": 0.9, "format": 1.0}) == "accuracy below 1"
    assert verdict(stage(), right, finish="length") == "cut off"
    assert verdict(stage(), right, text="<think>so") == "unreadable"
    assert verdict(stage(readable=Readable(code=False)), right, text="<think>\n```\n1\n```\n</think>ok") is None
    assert verdict(stage(), {"accuracy": Score(0.0, "timeout", "late"), "format": 1.0}) == "accuracy failed"


def test_thresholds_are_by_name_and_of_the_sources_that_have_the_reward():
    settings = stage(keep={"format": 1.0, "code": 0.5})
    assert verdict(settings, {"accuracy": 0.0, "format": 1.0}) is None
    assert verdict(settings, {"accuracy": 1.0, "format": 0.9}) == "format below 1"
    assert verdict(settings, {"code": 0.4}, source="code") == "code below 0.5"
    assert settings.least("code") == {"code": 0.5} and stage().least("code") == {"code": 1.0}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"init": ""}, "init names no model"),
        ({"init": "random"}, "init names no model"),
        ({"keep": {"code": 1.0}}, "keep asks nothing of source 'math'"),
        ({"keep": {"accuracy": 1.0, "code": 1.0, "speed": 1.0}}, "keep names speed"),
        ({"rows": {"maths": 3}}, "rows names maths"),
        ({"join": (Source(name="code"),)}, "share a name"),
        ({"dedupe": 0.3}, "dedupe is 0.3"),
        ({"sampling": Sampling(temperature=0.0)}, "all 4 answers to a prompt would be the same"),
        ({"sources": (Source(name="a", rewards={}),)}, "has no rewards"),
        ({"sources": ()}, "sources is empty"),
    ],
)
def test_settings_that_cannot_be(changes, said):
    with pytest.raises(ConfigError, match=said):
        stage(**changes)


# -- Choosing among what is right


def rows(*made: tuple[str, str, str]) -> list[dict]:
    return [{"source": source, "prompt": prompt, "completion": text, "answer": ""} for source, prompt, text in made]


def chosen(settings, given: list[dict]) -> tuple[list[int], dict[int, str]]:
    """Numbers of the rows that are kept, and the reason of each other."""
    left_out = {}
    kept = list(selection.choose(settings, lambda: iter(given), lambda row, why, _: left_out.update({given.index(row): why})))
    return [given.index(row) for row in kept], left_out


LONG = "the quick brown fox jumps over the lazy dog and then sleeps in the warm sun all day long"


def test_duplicates_go_before_the_answers_of_a_prompt_are_counted():
    given = rows(
        ("math", "a", LONG), ("math", "a", LONG + " today"), ("math", "a", "entirely different words stand here, none alike"),
        ("math", "b", LONG), ("math", "a", "a third answer that says something else altogether again"),
    )  # fmt: skip
    assert chosen(stage(per_prompt=2), given) == ([0, 2], {1: "duplicate", 3: "duplicate", 4: "more than per_prompt"})
    assert chosen(stage(per_prompt=1, dedupe=0), given)[0] == [0, 3]
    # The same text of a prompt with other numbers is another problem.
    assert chosen(stage(), rows(("math", "1 + 2", LONG), ("math", "1 + 3", LONG)))[0] == [0, 1]


def test_a_prompt_of_two_sources_is_two():
    given = rows(("math", "a", LONG), ("code", "a", "other words than those of the first are said here by far"))
    assert chosen(stage(), given)[0] == [0, 1]


def test_a_mix_by_counts_is_drawn_by_the_seed_and_keeps_the_order():
    given = rows(*(("math", f"{i}", f"answer number {i}") for i in range(40)), ("code", "c", "code"))
    kept, left_out = chosen(stage(rows={"math": 10}), given)
    assert len(kept) == 11 and kept == sorted(kept) and kept[-1] == 40 and set(left_out.values()) == {"more than rows"}
    assert chosen(stage(rows={"math": 10}), given)[0] == kept != chosen(stage(rows={"math": 10}, seed=1), given)[0]
    assert chosen(stage(rows={"math": 0}), given)[0] == [40]
    assert kept[0] > 0 or kept[9] > 9, "the first ones are not what is drawn"
    assert chosen(stage(rows={"math": 99}), given) == (list(range(41)), {})
