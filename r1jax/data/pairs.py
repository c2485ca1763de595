"""``r1jax data pairs``: answers to the same prompt, judged in both orders, become pairs to train a reward model on."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from r1jax.config import ConfigError, data_commands
from r1jax.data import jsonl, output, sources
from r1jax.data.cleaning import beside
from r1jax.rewards import Item, Pool, Score

AT_ONCE = 64
"""Pairs whose verdicts are waited for together."""


def pairs(args: data_commands.DataPairs) -> int:
    """Writes the pairs whose answers are further apart than ``args.margin``, on average over ``args.queries`` verdicts.

    Raises:
      ConfigError: the user's mistakes, or no pair was kept.
    """
    output.check_output(args.out)
    found = list(paired(args))
    if not found:
        raise ConfigError(f"{args.data} has no two different answers to one prompt; there is nothing to compare")
    told: Counter[str] = Counter()
    sizes = {"chosen": 0, "rejected": 0}
    with (
        Pool(args.workers) as pool, output.open_jsonl(args.out) as kept,
        output.open_jsonl(beside(args.out, "report.jsonl")) as report,
    ):  # fmt: skip
        pool.check([args.judge])
        for part in (found[first : first + AT_ONCE] for first in range(0, len(found), AT_ONCE)):
            asked = [item for pair in part for item in queries(*pair, args)]
            scores = [each[args.judge] for each in pool.score(asked)]
            for i, (a, b) in enumerate(part):
                verdicts = scores[i * args.queries : (i + 1) * args.queries]
                row, dropped, why = decided(a, b, verdicts, args)
                told[dropped or "kept"] += 1
                if dropped:
                    output.write_row(report, {"prompt": a["prompt"], "dropped": dropped, "why": why})
                    continue
                for name in sizes:
                    sizes[name] += len(row[name])
                output.write_row(kept, row)
        if not told["kept"]:
            raise ConfigError(f"none of {len(found)} pairs was kept: {dict(told)}; lower --margin, or look at the judge")
    count = told.pop("kept")
    means = {name: size / count for name, size in sizes.items()}
    summary = {"pairs": len(found), "kept": count, "dropped": dict(told), "mean_characters": means}
    with output.replacing(beside(args.out, "summary.json")) as file:
        file.write_text(json.dumps(summary, indent=1) + "\n")
    print(
        f"{len(found):,} pairs, {count:,} kept in {args.out}; dropped: {dict(told) or 'none'}; mean characters: chosen "
        f"{means['chosen']:.0f}, rejected {means['rejected']:.0f}",
        file=sys.stderr,
    )
    return 0


def paired(args: data_commands.DataPairs) -> Iterator[tuple[dict, dict]]:
    """The first and second different answers to each prompt, its third and fourth, and so on.

    Raises:
      ConfigError: a row has no prompt or no completion.
    """
    waiting: dict[str, dict] = {}
    for where, row in jsonl.stream(args.data):
        if problem := sources.prompt_problem(row):
            raise ConfigError(f"{where}: {problem}")
        if not isinstance(row.get("completion"), str):
            raise ConfigError(f"{where}: no 'completion', the assistant's whole turn (it has {', '.join(row)})")
        key = json.dumps(row["prompt"], sort_keys=True)
        if key not in waiting:
            waiting[key] = row
        elif waiting[key]["completion"] != row["completion"]:
            yield waiting.pop(key), row


def queries(a: dict, b: dict, args: data_commands.DataPairs) -> Iterator[Item]:
    """What the judge is asked, in turn with either answer first."""
    for i in range(args.queries):
        first, other = (a, b) if i % 2 == 0 else (b, a)
        row = {name: value for name, value in first.items() if name != "completion"}
        row |= {"other": other["completion"], "query": i // 2}
        yield Item(first["prompt"], first["completion"], row, (args.judge,))


def decided(a: dict, b: dict, verdicts: list[Score], args: data_commands.DataPairs) -> tuple[dict, str, str]:
    """The row to train on, with its provenance; or why the pair is dropped: the rule that it broke, and how."""
    if failed := [v for v in verdicts if v.status != "ok"]:
        return {}, f"judge {failed[0].status}", failed[0].why
    said = [v.value if i % 2 == 0 else -v.value for i, v in enumerate(verdicts)]  # by how much a is better
    mean = sum(said) / len(said)
    if abs(mean) <= args.margin:
        return {}, f"within {args.margin:g}", f"verdicts {said}"
    good, bad = (a, b) if mean > 0 else (b, a)
    provenance: dict[str, Any] = {"judge": args.judge, "verdicts": said if mean > 0 else [-v for v in said]}
    shared = {name: value for name, value in a.items() if name in b and b[name] == value and name != "completion"}
    row = {"chosen": good["completion"], "rejected": bad["completion"], "margin": abs(mean), "provenance": provenance}
    return {**shared, **row, "prompt": a["prompt"]}, "", ""
