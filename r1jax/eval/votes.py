"""Which answers are the same: what a majority vote counts."""

from __future__ import annotations

from string import ascii_uppercase

from r1jax.rewards.choice import chosen
from r1jax.rewards.extract import final_answer
from r1jax.rewards.load import split_options
from r1jax.rewards.notation import clean
from r1jax.rewards.quantity import quantity

WITHOUT = ("code",)
"""Rewards whose answers are not voted on: two programs that do the same are two texts."""


def can_vote(reward: str) -> bool:
    return split_options(reward)[0] not in WITHOUT


def vote(reward: str, completion: str, row: dict) -> str | None:
    """The final answer in a form in which equal ones are equal strings; None where there is none, which does not vote.

    Of ``choice`` the letter. Of ``accuracy`` and ``numeric`` a number in lowest terms with its unit, else the text without what
    does not change its meaning (``notation.clean``); formulas that are equal only by algebra are different votes. Of any other
    reward the text.
    """
    name, _ = split_options(reward)
    if name == "choice":
        option = chosen(completion, row)
        return None if option is None else ascii_uppercase[option]
    answer = final_answer(completion)
    if answer is None or name not in ("accuracy", "numeric"):
        return answer
    cleaned = clean(answer)
    number = quantity(cleaned)
    return (cleaned or answer) if number is None else f"{number.value} {number.unit}".strip()
