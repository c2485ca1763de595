"""The figures of an evaluation for people: tables on the terminal and in Markdown, and the command that asks for them again."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from r1jax.eval.published import NOTES

WIDTH = 160
"""Of a table where there is no terminal."""
SHARES = ("unsafe", "refused", "unsafe shown", "refused shown")
INTERVALS = "[low, high]: 95 %, a bootstrap over the problems; Wilson's where these came out alike"


class Sheet(NamedTuple):
    title: str
    head: tuple[str, ...]
    """The first column is text, the others are numbers."""
    rows: list[tuple[str, ...]]
    notes: tuple[str, ...]


def sheets(results: dict[str, Any]) -> Iterator[Sheet]:
    """The tables of results.json."""
    for model, found in results["figures"].items():
        solved = {task: r for task, r in found.items() if "groups" not in r}
        if solved:
            yield solving(model, solved, results)
        for task, r in found.items():
            if "groups" in r:
                yield safety(model, task, r, results)
    for other, pairs in results["against"].items():
        yield comparison(other, pairs, results)


def solving(model: str, found: dict[str, dict], results: dict[str, Any]) -> Sheet:
    shares = list(dict.fromkeys(key for r in found.values() for key in r if "@" in key and "/" not in key))
    rows, notes = [], [INTERVALS]
    for task, r in found.items():
        cells = [with_interval(r, key) if key in r else "" for key in shares]
        rows.append((task, f"{r['problems']:,}", *cells, f"{r['length/mean']:,.1f}", f"{r['length/truncated']:.3f}"))
        notes += not_scored(task, r, "count as wrong")
    head = ("task", "problems", *shares, "tokens", "truncated")
    return Sheet(f"{model}: {how(results, list(found))}", head, rows, tuple(notes))


def safety(model: str, task: str, r: dict, results: dict[str, Any]) -> Sheet:
    shares = [s for s in SHARES if s in r["groups"][0]]
    head = ["", "problems"]
    for share in shares:
        head += [share, "R1"] if any(share in g["published"] for g in r["groups"]) else [share]
    rows = []
    for group in r["groups"]:
        cells = []
        for share in shares:
            cells.append(with_interval(group, share) if share in group else "not judged")
            if any(share in g["published"] for g in r["groups"]):
                cells.append(f"{group['published'][share]:.3f}" if share in group["published"] else "")
        name = "all" if group["by"] == "all" else f"{group['by']} {group['name']}"
        rows.append((name, f"{group['problems']:,}", *cells))
    notes = (INTERVALS, *NOTES, *not_scored(task, r, "are left out"))
    return Sheet(f"{model}, {task}: {how(results, [task])}", tuple(head), rows, notes)


def comparison(other: str, pairs: dict[str, dict | None], results: dict[str, Any]) -> Sheet:
    first = next(iter(results["figures"]))
    rows = []
    for task, pair in pairs.items():
        if pair is None:
            rows.append((task, "not judged", "", "", ""))
            continue
        difference = f"{pair['difference']:+.3f} [{pair['low']:+.3f}, {pair['high']:+.3f}]"
        counts = f"{pair['better']:,} / {pair['worse']:,} / {pair['equal']:,}"
        rows.append((task, difference, counts, f"{pair['p_permutation']:.2g}", f"{pair['p_sign']:.2g}"))
    head = ("task", "difference", "higher / lower / same", "p, permutation", "p, sign")
    notes = (
        "difference: of pass@1, of safety tasks of unsafe; [low, high]: 95 %, a bootstrap over the problems; problems on which "
        "it is higher, lower, the same; p: two-sided and exact, by swapping the models on each problem, and by the sign alone",
    )
    return Sheet(f"{other} minus {first}", head, rows, notes)


def with_interval(r: dict, key: str) -> str:
    low, high = r[f"{key}/interval"]
    return f"{r[key]:.3f} [{low:.3f}, {high:.3f}]"


def not_scored(task: str, r: dict, effect: str) -> list[str]:
    if not r["not_scored"]:
        return []
    return [f"{task}: {r['not_scored']} answers could not be scored and {effect}; the first: {r['not_scored/first']}"]


def how(results: dict[str, Any], tasks: list[str]) -> str:
    """How the answers to these tasks were sampled."""
    asked = [results["tasks"][task] for task in tasks]
    s = asked[0]["sampling"]
    tokens, samples = {task["sampling"]["max_new_tokens"] for task in asked}, {task["samples"] for task in asked}
    most, each = (" or ".join(f"{n:,}" for n in sorted(found)) for found in (tokens, samples))
    answers = "answer" if each == "1" else "answers"
    return (
        f"temperature {s['temperature']:g}, top-p {s['top_p']:g}, {each} {answers} of at most {most} tokens to each problem, "
        f"seed {results['settings']['seed']}"
    )


def show(results: dict[str, Any]) -> None:
    """The tables on standard output."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    for sheet in sheets(results):
        table = Table(title=Text(sheet.title), title_justify="left")
        for i, name in enumerate(sheet.head):
            table.add_column(Text(name), justify="right" if i else "left", overflow="fold")
        for row in sheet.rows:
            table.add_row(*map(Text, row))
        console.print(table)
        for note in sheet.notes:
            console.print(Text(note), soft_wrap=True)


def markdown(results: dict[str, Any], measured: dict[str, Any]) -> str:
    """results.md."""
    lines = ["# Evaluation", ""]
    for sheet in sheets(results):
        lines += [f"## {sheet.title}", "", _row(sheet.head), _row(("---", *["---:"] * (len(sheet.head) - 1)))]
        lines += [_row(row) for row in sheet.rows]
        lines += ["", *(f"- {note}" for note in sheet.notes), ""]
    lines += ["## To repeat it", "", "```", results["command"], "```", "", "| | |", "|---|---|"]
    for model, name in results["models"].items():
        made = results["made"][model]
        lines.append(_row((f"model {model}", f"{name}; weights {made['weights']}; {made['slots']} slots")))
    for task, about in results["tasks"].items():
        lines.append(_row((f"task {task}", f"{about['path']}; {about['identity']}; rewards {', '.join(about['rewards'])}")))
    lines.append(_row(("versions", ", ".join(f"{name} {found}" for name, found in results["versions"].items()))))
    lines.append(_row(("devices", results["devices"])))
    speed = f"{measured['tokens']:,} tokens in {measured['seconds']:,.1f} s, {measured['tokens_per_s']:,.1f} tokens/s"
    done = f"{measured['date']}: {measured['answers']:,} answers, {speed}, compilation included; of this call alone"
    lines.append(_row(("measured", done)))
    return "\n".join(lines) + "\n"


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def command(name: str, args: Any) -> str:
    """The command line for the arguments, without those that have their default."""
    return " ".join([name, *_flags(args, "")])


def _flags(value: Any, where: str) -> Iterator[str]:
    for field in dataclasses.fields(value):
        found, flag = getattr(value, field.name), f"{where}{field.name.rstrip('_')}"
        made = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if found == made:
            continue
        if dataclasses.is_dataclass(found):
            yield from _flags(found, f"{flag}.")
        elif isinstance(found, bool):
            *above, last = flag.split(".")
            yield "--" + ".".join([*above, last if found else f"no-{last}"]).replace("_", "-")
        else:
            words = found if isinstance(found, tuple) else (found,)
            yield " ".join([f"--{flag.replace('_', '-')}", *(shlex.quote(str(word)) for word in words)])
