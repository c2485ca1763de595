"""``r1jax eval``: pass@1, pass@k and cons@k of a model on problems that it was not trained on."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from r1jax import config
from r1jax.config import commands
from r1jax.data import known, output, sources
from r1jax.eval import answers as asking
from r1jax.eval.estimators import cons_at_k, interval, pass_at_k
from r1jax.eval.loaded import SMALLER, engine_for, find_template, load_sampler, open_model
from r1jax.plan.shortage import out_of_memory_is
from r1jax.rewards import Pool
from r1jax.rewards.extract import final_answer

WIDTH = 160  # of the table where there is no terminal


@out_of_memory_is(f"lower --slots or --max-new-tokens; {SMALLER}")
def evaluate(args: commands.Evaluate) -> int:
    """Prints a table of the figures; writes the answers to ``args.out`` and the figures beside it.

    A task's answers depend on the seed, its rows and the model, never on the other tasks or where the rows lie.

    Raises:
      ConfigError: the user's mistakes.
    """
    tasks = [sources.named(task, reward=args.reward, limit=args.limit) for task in args.tasks]
    rows = [sources.load(source) for source in tasks]
    if args.out is not None:
        output.check_output(args.out)
    opened = open_model(args)
    template = find_template(opened, args.template)
    asked = [asking.questions(problems, range(len(problems)), template) for problems in rows]
    found, results = [], {}
    with Pool(config.Workers()) as pool, _progress() as progress:
        pool.check([name for source in tasks for name in source.rewards])
        per_problem = [args.samples or known.samples(source.options.get("known")) for source in tasks]
        engine = engine_for([q for part in asked for q in part], max(per_problem), args.slots)
        sampler = load_sampler(opened, engine, args)
        for source, problems, part, samples in zip(tasks, rows, asked, per_problem, strict=True):
            bar = progress.add_task(source.name, total=len(part) * samples)
            started = time.perf_counter()
            sampled = asking.sample(
                part,
                sampler=sampler,
                pool=pool,
                tokenizer=opened.tokenizer,
                sampling=args.sampling,
                samples=samples,
                round=zlib.crc32(problems.identity.encode()) >> 1,  # 31 bits: a stream of the rows' own, wherever they lie
                weights={source.name: source.rewards},
                progress=_advance(progress, bar),
            )
            seconds = time.perf_counter() - started
            found.append(sampled.scored())
            results[source.name] = figures(found[-1], samples, seconds)
    if jax.process_index() == 0:
        show(results, args)
        if args.out is not None:
            write(args, found, results)
    return 0


def is_right(answers: asking.Answers) -> np.ndarray:
    """bool[N]: the answer's one reward is at least 1."""
    return answers.rewards >= 1


def figures(answers: asking.Answers, samples: int, seconds: float) -> dict:
    """What is told of a task, JSON values. ``pass@1``, ``pass@K`` and ``cons@K`` are means over the problems, each with its
    95 % interval beside it."""
    right = is_right(answers).reshape(-1, samples)
    t = answers.trajectories
    lengths = t.length - t.prompt_length
    estimates = {"pass@1": (pass_at_k(right, 1), samples)}
    if samples > 1:
        given = [final_answer(text) for text in answers.completions]
        votes = [given[i : i + samples] for i in range(0, len(given), samples)]
        estimates |= {f"pass@{samples}": (pass_at_k(right, samples), 1), f"cons@{samples}": (cons_at_k(votes, right), 1)}
    out: dict = {"problems": len(right), "samples": samples}
    for name, (values, trials) in estimates.items():
        out |= {name: float(values.mean()), f"{name}/interval": list(interval(values, samples=trials))}
    failed = [s for scores in answers.scores for s in scores.values() if s.status != "ok"]
    return out | {
        "length/mean": float(lengths.mean()),
        "length/truncated": float((t.finish == 0).mean()),
        "tokens_per_s": float(lengths.sum() / max(seconds, 1e-9)),
        "not_scored": len(failed),
        "not_scored/first": f"{failed[0].status}: {failed[0].why}" if failed else "",
    }


def show(results: dict[str, dict], args: commands.Evaluate) -> None:
    """The figures as a table on standard output. Scores that failed are told below it."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    shares = list(dict.fromkeys(key for r in results.values() for key in r if "@" in key and "/" not in key))
    s = args.sampling
    how = f"temperature {s.temperature:g}, top-p {s.top_p:g}, at most {s.max_new_tokens} tokens, seed {args.seed}"
    caption = Text("[low, high]: 95 % intervals; tokens/s of the first task with compilation")
    table = Table(title=Text(f"{args.model}: {how}"), title_justify="left", caption=caption, caption_justify="left")
    table.add_column("task", overflow="fold")
    for name in ("problems", *shares, "tokens", "truncated", "tokens/s"):
        table.add_column(name, justify="right")
    for task, r in results.items():
        cells = [_with_interval(r, key) if key in r else "" for key in shares]
        rest = (f"{r['length/mean']:.1f}", f"{r['length/truncated']:.3f}", f"{r['tokens_per_s']:,.0f}")
        table.add_row(*map(Text, (task, f"{r['problems']:,}", *cells, *rest)))
    console.print(table)
    for task, r in results.items():
        if r["not_scored"]:
            failed = f"{task}: {r['not_scored']} answers could not be scored and count as wrong"
            console.print(Text(f"{failed}; the first: {r['not_scored/first']}"), soft_wrap=True)


def _with_interval(r: dict, key: str) -> str:
    low, high = r[f"{key}/interval"]
    return f"{r[key]:.3f} [{low:.3f}, {high:.3f}]"


def write(args: commands.Evaluate, found: list[asking.Answers], results: dict[str, dict]) -> None:
    """Every answer, a row as in samples.jsonl with ``final_answer`` and ``right``; and the figures with what they depend on."""
    with output.open_jsonl(args.out) as file:
        for answers in found:
            for i, right in enumerate(is_right(answers)):
                output.write_row(file, answers.sample(i, final_answer=final_answer(answers.completions[i]), right=bool(right)))
    about = {
        "model": args.model,
        "template": args.template,
        "sampling": config.to_json(args.sampling),
        "seed": args.seed,
        "tasks": results,
    }
    with output.replacing(summary_path(args.out)) as part:
        part.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def summary_path(out: Path) -> Path:
    return out.with_name(f"{out.stem}.summary.json")


def _advance(progress: Progress, bar) -> Callable[[int, int], None]:
    return lambda answers, tokens: progress.advance(bar, answers)


def _progress() -> Progress:
    """A bar per task on standard error, where that is a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    hidden = not console.is_terminal or jax.process_index() > 0
    return Progress(*columns, console=console, redirect_stdout=False, disable=hidden)
