"""Which side of the train/test line a problem is on: a property of the problem, not of its place in a list."""

from __future__ import annotations

import hashlib


def held_out(problem: str, share: float) -> bool:
    """Whether ``problem`` belongs to the test side, which a ``share`` of all problems does.

    The same text is on the same side in every run, file and version of Python.
    """
    digest = hashlib.blake2b(problem.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64
