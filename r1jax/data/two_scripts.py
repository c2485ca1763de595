"""Sums whose thoughts are written in words, English or Chinese: the tiny pipeline's task, in which a policy can mix languages.

    prompt      en 47+38=                                                       zh 47+38=
    completion  <think>so fifteen so eight</think><answer>85</answer>           <think>则十五则八</think><answer>85</answer>

The steps are those of ``arithmetic``. ``target_language`` is the language that the prompt asks for, which the reward
``language`` looks at.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from r1jax.config import ConfigError
from r1jax.data import arithmetic
from r1jax.data.number_words import in_words

LANGUAGES = ("en", "zh")
TEST_ROWS = arithmetic.TEST_ROWS
_NUMERALS = "零一二三四五六七八九"


def rows(
    split: str,
    *,
    digits: int = 2,
    noise: float = 0.0,
    forget_carry: float = 0.0,
    mixed: float = 0.0,
    seed: int = 0,
    size: int = 1_000_000,
) -> Sequence[dict]:
    """Rows with ``prompt``, ``answer``, ``completion`` and ``target_language``; both languages are equally frequent. A problem
    is on the side of the split on which ``arithmetic`` has it.

    Args:
      split: ``train``; or ``test``, ``TEST_ROWS`` different problems, without mistakes, whatever ``seed`` and ``size`` are.
      digits, noise, forget_carry: as of ``arithmetic.rows``.
      mixed: probability that a step of a training completion is written in the other language.
      seed: of the training rows. Row i is a function of the seed, these options and i alone.
      size: training rows.

    Raises:
      ConfigError: an unknown split or an option out of range.
    """
    if not 0 <= mixed <= 1:
        raise ConfigError(f"two_scripts: mixed is {mixed}; it is a probability, 0 to 1")
    arithmetic.rows(split, digits=digits, noise=noise, forget_carry=forget_carry, size=size)  # for what it has against them
    if split == "train":

        def make(rng: random.Random) -> dict:
            return _row(rng, arithmetic.problem(rng, digits, test=False), noise, forget_carry, mixed)

        return _Train(make, seed, size)
    rng = random.Random("test")
    problems: dict[tuple[int, int], None] = {}
    while len(problems) < TEST_ROWS:
        problems[arithmetic.problem(rng, digits, test=True)] = None
    return [_row(rng, problem, 0.0, 0.0, 0.0) for problem in problems]


def names(split: str, *, seed: int = 0, size: int = 1_000_000) -> Sequence[dict]:
    """Numbers from 0 to 99 in words, without a thought: ``zh 47`` becomes ``四十七``. The tiny pipeline's rows that are no
    reasoning.

    Raises:
      ConfigError: an unknown split; all of it is for training.
    """
    if split != "train":
        raise ConfigError(f"two_scripts: names has no split {split!r}; use 'train'")
    return _Train(_name, seed, size)


def preferences(split: str, *, seed: int = 0, size: int = 1_000_000) -> Sequence[dict]:
    """Pairs of answers to the prompts of ``names``: the number in the language that is asked for is better than the number in
    the other language, or than another number. What ends in 7 is in the split ``test``, 400 pairs.

    Raises:
      ConfigError: an unknown split.
    """
    return _Train(lambda rng: _pair(rng, split == "test"), seed, _judged_size(split, "preferences", size))


def labels(split: str, *, seed: int = 0, size: int = 1_000_000) -> Sequence[dict]:
    """Answers to the prompts of ``rows``: good (``label`` 1) if all of the thought is in the language that is asked for, else
    bad (0); both are equally frequent. It stands for harm, which may be in the thought too. The split ``test`` has 400.

    Raises:
      ConfigError: an unknown split.
    """
    return _Train(lambda rng: _labelled(rng, split == "test"), seed, _judged_size(split, "labels", size))


def _judged_size(split: str, name: str, size: int) -> int:
    if split not in ("train", "test"):
        raise ConfigError(f"two_scripts: {name} has no split {split!r}; use 'train' or 'test'")
    return size if split == "train" else 400


def in_language(n: int, language: str) -> str:
    """0 <= n < 100 in English words or Chinese numerals: 47 is 'forty-seven' or '四十七'."""
    if language == "en":
        return in_words(n)
    tens, ones = divmod(n, 10)
    if not tens:
        return _NUMERALS[ones]
    return ("" if tens == 1 else _NUMERALS[tens]) + "十" + (_NUMERALS[ones] if ones else "")


class _Train(Sequence):
    def __init__(self, make: Callable[[random.Random], dict], seed: int, size: int):
        self.make, self.seed, self.size = make, seed, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.size:
            raise IndexError(index)
        return self.make(random.Random(f"{self.seed}/{index}"))


def _row(rng: random.Random, problem: tuple[int, int], noise: float, forget_carry: float, mixed: float) -> dict:
    a, b = problem
    language = _one_of(rng)
    steps, answer = arithmetic.worked(a, b, rng, noise, forget_carry)
    thought = ""
    for step in steps:
        written = LANGUAGES[1 - LANGUAGES.index(language)] if rng.random() < mixed else language
        # Two English words in a row, for one alone may be a name in a Chinese text.
        said = f"so {in_language(step, 'en')}" if written == "en" else f"则{in_language(step, 'zh')}"
        thought += (" " if thought and written == "en" else "") + said
    return {
        "prompt": f"{language} {a}+{b}=",
        "answer": str(a + b),
        "completion": f"<think>{thought}</think><answer>{answer}</answer>",
        "target_language": language,
    }


def _name(rng: random.Random) -> dict:
    language, n = _one_of(rng), int(rng.random() * 100)
    said = in_language(n, language)
    return {"prompt": f"{language} {n}", "answer": said, "completion": said, "target_language": language}


def _pair(rng: random.Random, test: bool) -> dict:
    language = _one_of(rng)
    n = other = _number(rng, test)
    written = LANGUAGES[1 - LANGUAGES.index(language)]
    if rng.random() < 0.5:
        written = language
        while other == n:
            other = _number(rng, test)
    return {"prompt": f"{language} {n}", "chosen": in_language(n, language), "rejected": in_language(other, written)}


def _number(rng: random.Random, test: bool) -> int:
    """Of the split."""
    while True:
        n = int(rng.random() * 100)
        if (n % 10 == 7) == test:
            return n


def _labelled(rng: random.Random, test: bool) -> dict:
    label = int(rng.random() < 0.5)
    while True:
        row = _row(rng, arithmetic.problem(rng, 2, test=test), 0.0, 0.0, 0.0 if label else 0.6)
        if ("则" in row["completion"] if row["target_language"] == "en" else "so " in row["completion"]) != bool(label):
            return {"prompt": row["prompt"], "completion": row["completion"], "label": label}


def _one_of(rng: random.Random) -> str:
    return LANGUAGES[int(rng.random() * 2)]
