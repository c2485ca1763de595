"""Stop strings: searched for by the host, because a string may straddle tokens, which no token id tells."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence


def find(ids: Sequence[int], searched: int, stop: Sequence[str], text: Callable[[list[int]], str]) -> int | None:
    """How many of the tokens it takes to complete a stop string; None if there is none.

    Args:
      ids: an answer's tokens.
      searched: the first so many hold none. Of these only as many are looked at as a string that goes on behind them may have,
        a byte being the least that a token adds to a text.
    """
    first = max(0, searched - max(len(s.encode()) for s in stop))

    def holds(n: int) -> bool:
        found = text(list(ids[first : first + n]))
        return any(s in found for s in stop)

    if len(ids) <= searched or not holds(len(ids) - first):
        return None
    return first + bisect_left(range(len(ids) - first), True, lo=searched - first, key=holds)
