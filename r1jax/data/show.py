"""``r1jax data show``: what rows there are."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import islice
from typing import Any

from r1jax.config import ConfigError, data_commands
from r1jax.data import cleaning

SHOWN = 400
"""Characters of a field's value."""
_NAMES = {"NoneType": "null", "bool": "bool", "int": "int", "float": "float", "str": "text", "list": "list", "dict": "object"}


def show(args: data_commands.DataShow) -> int:
    """Prints the number of rows, each field with its types and lengths, the files' digest, and the first rows.

    Raises:
      ConfigError: there are no such rows.
    """
    rows = cleaning.open_rows(args.data, args.split, prompts=False)
    total, types, sizes = 0, defaultdict(Counter), defaultdict(list)
    for _, row in rows:
        total += 1
        for field, value in row.items():
            types[field][type(value).__name__] += 1
            if isinstance(value, str):
                sizes[field].append(len(value))
    if not total:
        raise ConfigError(f"{args.data} has no rows in split {args.split!r}")
    print(f"{total:,} rows in {', '.join(map(str, rows.files))}")
    print(f"sha256 {rows.digest()}" + (f", commit {rows.commit}" if rows.commit else ""))
    width = max(map(len, types))
    for field, counts in types.items():
        kinds = ", ".join(f"{_NAMES.get(kind, kind)} {count:,}" for kind, count in counts.most_common())
        print(f"  {field:<{width}}  {kinds}{_lengths(sizes[field])}")
    for where, row in islice(rows, args.rows):
        print(f"\n{where}")
        for field, value in row.items():
            print(f"  {field}: {_short(value)}")
    return 0


def _lengths(sizes: list[int]) -> str:
    if not sizes:
        return ""
    ordered = sorted(sizes)
    return f"; characters: median {ordered[len(ordered) // 2]:,}, most {ordered[-1]:,}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text):,} characters)"
