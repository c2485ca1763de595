"""Words with which a model reflects on what it wrote: R1-Zero's use of them rose five- to sevenfold during its training."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

WORDS = ("wait", "mistake", "however", "but", "retry", "error", "verify", "wrong", "evaluate", "check")
"""The ones that R1's authors counted (arXiv 2501.12948v2, appendix C.2)."""
_WORD = re.compile(rf"\b(?:{'|'.join(WORDS)})\b", re.IGNORECASE)


def counts(text: str) -> Counter[str]:
    """How often each of ``WORDS`` stands in a text, as a whole word, in any case."""
    return Counter(word.lower() for word in _WORD.findall(text))


def metrics(completions: Sequence[str]) -> dict[str, float]:
    """``reflection/WORD``, and ``reflection/all``: occurrences per answer, mean over the answers."""
    found = sum(map(counts, completions), Counter())
    each = {word: found[word] / len(completions) for word in WORDS}
    return {"reflection/all": sum(each.values()), **{f"reflection/{word}": mean for word, mean in each.items()}}
