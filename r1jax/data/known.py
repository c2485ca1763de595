"""Data sets known by name: where they are, how a row of theirs becomes a row of ours, its grader, and R1's number of samples.

``Source(path="openai/gsm8k", options={"known": "gsm8k"})``, or ``r1jax eval --tasks gsm8k``. R1 was evaluated at temperature
0.6 and top-p 0.95 with up to 32,768 tokens (arXiv 2501.12948v2, appendix D.1), which ``r1jax eval`` does with these sets.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from string import ascii_uppercase
from typing import Any, NamedTuple

from r1jax.config import ConfigError


class Known(NamedTuple):
    path: str
    """On the Hub. Copies with the same columns may be anywhere."""
    config: str | None
    """The folder of ``path`` whose rows are meant; copies without such a folder are fine."""
    split: str
    """The split that holds the problems."""
    reward: str
    """The grader."""
    samples: int
    """Answers per problem in the evaluation."""
    row: Callable[[dict], dict]
    """A row as it was found -> ``prompt``, ``answer`` and what else ``reward`` wants. ValueError says what is missing."""
    request: str = ""
    """What an evaluation puts behind the prompt where the template does not say in which form to answer."""


def find(name: str) -> Known:
    """
    Raises:
      ConfigError: no such data set is known.
    """
    if name not in KNOWN:
        raise ConfigError(f"options.known is {name!r}; known are {', '.join(KNOWN)}, and options.fields fits others")
    return KNOWN[name]


def samples(name: str | None) -> int:
    """Answers per problem in the evaluation; 1 where no set is named."""
    return 1 if name is None else find(name).samples


# -- Rows


def gsm8k(row: dict) -> dict:
    """The answer stands behind ``####``, after its derivation."""
    solution = _column(row, "answer")
    found = re.search(r"#### *(.+)", solution)
    if not found:
        raise ValueError(f"the answer {solution!r:.80} has no line '#### NUMBER'")
    return {"prompt": _column(row, "question"), "answer": found[1].strip()}


def competition(row: dict) -> dict:
    """Problem and answer under any of the names that copies of these sets have."""
    prompt = _column(row, "problem", "Problem", "question")
    return {"prompt": prompt, "answer": str(_column(row, "answer", "Answer", kind=str | int))}


def aime(row: dict) -> dict:
    """Answers are whole numbers from 0 to 999, in some copies as three digits."""
    made = competition(row)
    if not re.fullmatch(r"\d{1,3}", made["answer"].strip()):
        raise ValueError(f"the answer {made['answer']!r:.80} is no whole number from 0 to 999")
    return made | {"answer": str(int(made["answer"]))}


def gpqa(row: dict) -> dict:
    """The right option and three wrong ones, in an order that the question alone decides."""
    question = _column(row, "Question").strip()
    given = [_column(row, n).strip() for n in ("Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3)))]
    rng = random.Random(question)
    places = [rng.random() for _ in given]  # the one stream that Python promises to keep from version to version
    order = sorted(range(len(given)), key=lambda i: places[i])
    options = [given[i] for i in order]
    listed = "\n".join(f"{letter}) {option}" for letter, option in zip(ascii_uppercase, options, strict=False))
    prompt = f"{question}\n\n{listed}\n\nOne of the options is right. End with its letter: Answer: LETTER"
    return {"prompt": prompt, "answer": ascii_uppercase[order.index(0)], "options": options}


def humaneval(row: dict) -> dict:
    """A function to complete. What stands before it, imports and helpers, is given to every answer."""
    stub, name = _column(row, "prompt"), _column(row, "entry_point")
    start = stub.rfind(f"def {name}(")
    if start < 0:
        raise ValueError(f"the prompt does not define the entry point {name!r}")
    answer = {"check": _column(row, "test"), "entry_point": name, "setup": stub[:start]}
    prompt = f"Complete this Python function, and answer with all of it in one block of code:\n\n```python\n{stub.strip()}\n```"
    gold = f"<think>\n</think>\n```python\n{stub}{_column(row, 'canonical_solution')}\n```"
    return {"prompt": prompt, "answer": answer, "gold": gold}


def _column(row: dict, *names: str, kind: Any = str) -> Any:
    """The first of these that the row has."""
    for name in names:
        if isinstance(row.get(name), kind):
            return row[name]
    wanted = " or ".join(map(repr, names))
    raise ValueError(f"no {wanted}, or not the text it should be (it has {', '.join(map(repr, row)) or 'no fields'})")


BOX = "\nPlease reason step by step, and put your final answer within \\boxed{}."
"""What R1's README advises to put into the prompt of a mathematical problem."""
PARQUET = "@refs/convert/parquet"
"""The revision at which the Hub keeps a copy in Parquet of a data set in another format."""

# Samples: 64 of AIME and GPQA, 16 of MATH (arXiv 2501.12948v2, appendix D.1). The others are not among R1's benchmarks, for
# which version 1 says 4 to 64, by the size of the set.
KNOWN = {
    "gsm8k": Known("openai/gsm8k", "main", "test", "accuracy", 4, gsm8k, BOX),
    "math-500": Known("HuggingFaceH4/MATH-500", None, "test", "accuracy", 16, competition, BOX),
    "aime": Known("HuggingFaceH4/aime_2024", None, "train", "accuracy", 64, aime, BOX),
    "aime-2025": Known("math-ai/aime25", None, "test", "accuracy", 64, aime, BOX),
    "gpqa-diamond": Known(f"Idavidrein/gpqa{PARQUET}", "gpqa_diamond", "train", "choice", 64, gpqa),
    "deepscaler": Known(f"agentica-org/DeepScaleR-Preview-Dataset{PARQUET}", None, "train", "accuracy", 4, competition, BOX),
    "humaneval": Known("openai/openai_humaneval", "openai_humaneval", "test", "code", 8, humaneval),
}
