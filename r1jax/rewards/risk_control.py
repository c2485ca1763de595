"""Whether an answer is shown: a filter by keywords, and for what it stops a review by a judge.

R1's service does so around the model: questions that match a list of words are sent, with the answer, to DeepSeek-V3 for a
review that may retract it (Nature 2025, supplement D.3). Words and judge are the user's.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1jax.config import from_json
from r1jax.rewards.score import Score

_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
"""Letters of scripts whose words no spaces part."""


@dataclass(frozen=True)
class Rules:
    """What a file of rules holds, a JSON object."""

    keywords: str
    """A text file, beside the rules unless its path is absolute: a word or phrase a line. Case and width make no difference; it
    matches whole words, in scripts without spaces anywhere. Empty lines and those that begin with ``#`` are no keywords."""
    judge: str | None = None
    """A reward by name, which reviews what the keywords stop. Without one all of that is withheld."""
    safe_from: float = 0.5
    """It is shown where the judge says at least this."""
    answer: str = "I cannot help with that."
    """What stands in the place of an answer that is withheld."""


async def risk_control(prompt: Any, completion: str, row: dict, *, rules: str) -> Score:
    """1 if the answer is shown, 0 if it is withheld; ``why`` says by which keyword, and what the review found.

    What is searched is the prompt and the whole turn with its thought. A review that fails withholds: the status is then the
    review's.

    Args:
      rules: the path of a JSON file, see ``Rules``.
    """
    control = open_rules(rules)
    keyword = control.find(prompt, completion)
    if keyword is None:
        return Score(1.0, why="no keyword")
    if control.review is None:
        return Score(0.0, why=f"keyword {keyword!r}")
    found = control.review(prompt, completion, row)
    found = await found if inspect.isawaitable(found) else found
    found = found if isinstance(found, Score) else Score(float(found))
    shown = found.status == "ok" and found.value >= control.rules.safe_from
    said = f"{found.value:g}" if found.status == "ok" else found.status
    return Score(float(shown), found.status, f"keyword {keyword!r}, review {said}: {found.why}".removesuffix(": "))


class Control:
    """Rules that were read, their keywords as one expression, and their judge."""

    def __init__(self, path: Path):
        from r1jax.rewards.load import load  # which names this module

        self.rules = _read(path)
        self.keywords = path.parent / Path(self.rules.keywords).expanduser()
        words = _lines(self.keywords)
        self._keywords = re.compile("|".join(_whole(word) for word in words))
        self.review = None if self.rules.judge is None else load(self.rules.judge)

    def find(self, prompt: Any, completion: str) -> str | None:
        """The first keyword in prompt or answer."""
        asked = prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
        found = self._keywords.search(_plain(asked)) or self._keywords.search(_plain(completion))
        return None if found is None else found[0]


@functools.cache
def open_rules(path: str) -> Control:
    """
    Raises:
      ValueError: the rules, their keywords or their judge cannot be read or loaded; one line.
    """
    return Control(Path(path).expanduser())


def _ready(*, rules: str) -> None:
    open_rules(rules)


def _files(*, rules: str) -> list[Path]:
    from r1jax.rewards.load import files_of  # which names this module

    control = open_rules(rules)
    return [control.keywords, *([] if control.rules.judge is None else files_of(control.rules.judge))]


risk_control.ready, risk_control.files = _ready, _files


def _read(path: Path) -> Rules:
    try:
        return from_json(Rules, json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f"the rules {path} cannot be read ({type(e).__name__}); give the path of a JSON file") from e
    except json.JSONDecodeError as e:
        raise ValueError(f"the rules {path} are not JSON: {e}") from e
    except TypeError as e:
        raise ValueError(f"the rules {path} must name a file of 'keywords'") from e


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f"the keywords {path} cannot be read ({type(e).__name__}); give a text file, a keyword a line") from e
    words = [_plain(line).strip() for line in lines if line.strip() and not line.startswith("#")]
    if not words:
        raise ValueError(f"the keywords {path} are none; write one on each line")
    return words


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _whole(word: str) -> str:
    before = "" if _UNSPACED.match(word[0]) or not word[0].isalnum() else r"(?<!\w)"
    after = "" if _UNSPACED.match(word[-1]) or not word[-1].isalnum() else r"(?!\w)"
    return before + r"\s+".join(map(re.escape, word.split())) + after
