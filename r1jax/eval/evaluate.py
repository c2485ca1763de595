"""``r1jax eval``: pass@1, pass@k and cons@k of models on problems that they were not trained on, and how safe they are."""

from __future__ import annotations

import dataclasses
import itertools
import json
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version

import jax
import numpy as np
from rich.console import Console

import r1jax
from r1jax import config, loading, sharding
from r1jax.config import ConfigError, commands
from r1jax.config.base import GuardStop
from r1jax.eval import answers as asking
from r1jax.eval import figures, show
from r1jax.eval.loaded import SMALLER, engine_for, find_template, fit, load, open_model, reading
from r1jax.eval.record import RESULTS, SUMMARY, Record
from r1jax.eval.tasks import Task, find_tasks
from r1jax.eval.votes import vote
from r1jax.loading import Opened
from r1jax.observe.display import Display
from r1jax.params import fingerprint
from r1jax.plan.shortage import out_of_memory_is
from r1jax.rewards import Pool
from r1jax.rewards.extract import final_answer
from r1jax.rollout.jobs import cache_lengths

PER_SLOT = 16
"""Answers of a batch for each slot: at its end slots stand idle, which costs the less the longer it is."""
PACKAGES = ("jax", "jaxlib", "numpy", "tokenizers", "math-verify")
"""Whose versions can change an answer or its grade."""
Rows = dict[tuple[str, str], list[dict]]
"""What is kept of the answers, by model and task."""


@out_of_memory_is(f"lower --slots or --max-new-tokens; {SMALLER}")
def evaluate(args: commands.Evaluate) -> int:
    """Prints the figures; writes answers and figures to ``args.out``, see ``record``.

    A task's answers depend on the seed, its rows and the model, never on the other tasks or where the rows lie.

    Raises:
      ConfigError: the user's mistakes.
      GuardStop: too many answers to a safety task could not be judged.
    """
    models = [open_model(args, name) for name in (args.model, *args.against)]
    tasks = find_tasks(args, models)
    record = open_record(args, models, tasks)
    rows: Rows = {}
    measured = {"answers": 0, "tokens": 0, "seconds": 0.0}
    with Pool(args.workers) as pool:
        pool.check([name for task in tasks for name in task.rewards])
        for opened in models:
            rows |= answer(opened, tasks, args, record, pool, measured)
    results = collect(args, record, tasks, rows)
    if jax.process_index() == 0:
        speed = measured["tokens"] / max(measured["seconds"], 1e-9)
        measured = {"date": time.strftime("%Y-%m-%d"), **measured, "tokens_per_s": speed}
        if not measured["answers"] and (before := record.results()) is not None:
            measured = before["measured"]  # what was found before is shown once more
        record.write(RESULTS, json.dumps(results | {"measured": measured}, indent=1) + "\n")
        record.write(SUMMARY, show.markdown(results, measured))
        show.show(results)
    stop_if_not_judged(results, args.workers.max_error_share)
    return 0


def answer(
    opened: Opened, tasks: Sequence[Task], args: commands.Evaluate, record: Record, pool: Pool, measured: dict[str, float]
) -> Rows:
    """All of a model's answers: those that are in the record, and the others, for which its weights are loaded. Adds what these
    took to ``measured``."""
    template = find_template(opened, args.template)
    asked = [task.questions(template) for task in tasks]
    made = record.made.get(opened.name)
    engine = engine_of(opened, tasks, asked, args, None if made is None else made["slots"])
    plan = batches(tasks, asked, args.batch or PER_SLOT * engine.slots)
    done = asking.from_first("batches done", record.resume(opened.name, [len(batch) * task.samples for task, batch in plan]))
    if done < len(plan):
        sampler = load(opened, engine, args)
        record.note(opened.name, {"slots": engine.slots, "weights": fingerprint(sampler.params), "template": template.source})
        console = Console(stderr=True, highlight=False, quiet=jax.process_index() > 0)
        with Display(f"eval {opened.name}", len(plan), first_step=done, console=console) as display:
            for number, (task, batch) in enumerate(plan[done:], done + 1):
                started = time.perf_counter()
                with display.phase(task.name, len(batch) * task.samples, "answers"):
                    found = asking.sample(
                        batch, sampler=sampler, pool=pool, tokenizer=opened.tokenizer, sampling=task.sampling,
                        samples=task.samples, round=task.round, weights={task.name: dict.fromkeys(task.rewards, 1.0)},
                        progress=display.advance,
                    ).scored()  # fmt: skip
                if jax.process_index() == 0:
                    record.append(opened.name, described(found, opened.name, task))
                display.step(number, {f"reward/{task.rewards[0]}": float(np.mean(found.values(task.rewards[0])))})
                lengths = found.trajectories.length - found.trajectories.prompt_length
                measured["answers"] += len(lengths)
                measured["tokens"] += int(lengths.sum())
                measured["seconds"] += time.perf_counter() - started
    kept = record.rows(opened.name)
    counts = [len(task.rows) * task.samples for task in tasks]
    ends = itertools.accumulate(counts)
    return {(opened.name, task.name): kept[end - n : end] for task, n, end in zip(tasks, counts, ends, strict=True)}


def engine_of(
    opened: Opened, tasks: Sequence[Task], asked: Sequence[list[asking.Question]], args: commands.Evaluate, slots: int | None
) -> config.Engine:
    """The engine of all tasks, with the slots that it had before, were asked for, or fit. Its cache lengths do not depend on
    which questions are asked together: they are compiled once, and rounding is the same."""
    cap = max(task.sampling.max_new_tokens for task in tasks)
    known = slots or args.slots
    engine = reading(engine_for([q for part in asked for q in part], max(task.samples for task in tasks), known), args)
    if known is None:
        engine = fit(engine, opened.model, sharding.make_mesh(args.mesh), cap)
    return dataclasses.replace(engine, buckets=tuple(cache_lengths(engine, engine.max_prompt_tokens, cap)))


def batches(
    tasks: Sequence[Task], asked: Sequence[list[asking.Question]], most: int
) -> list[tuple[Task, list[asking.Question]]]:
    """Questions that are asked together, of up to ``most`` answers, or one question."""
    plan = []
    for task, part in zip(tasks, asked, strict=True):
        together = max(1, most // task.samples)
        plan += [(task, part[first : first + together]) for first in range(0, len(part), together)]
    return plan


def described(found: asking.Answers, model: str, task: Task) -> list[dict]:
    """The answers as rows of answers.jsonl: as in samples.jsonl, with model, task, ``final_answer``, and of a problem to solve
    ``vote`` and ``right``; of safety with the row's category, language, benchmark and the jailbreak's number."""
    rows, right = [], is_right(found)
    for i, (question, completion) in enumerate(zip(found.questions, found.completions, strict=True)):
        more = {"final_answer": final_answer(completion)}
        if task.is_safety:
            fields = ("category", "language", "benchmark", "jailbreak")
            more |= {name: question.row[name] for name in fields if name in question.row}
        else:
            more |= {"vote": vote(task.rewards[0], completion, question.row), "right": bool(right[i])}
        rows.append({"model": model, "task": task.name, **found.sample(i, **more)})
    return rows


def is_right(answers: asking.Answers) -> np.ndarray:
    """bool[N]: the answer's one reward is at least 1."""
    return answers.rewards >= 1


# -- Record


def open_record(args: commands.Evaluate, models: Sequence[Opened], tasks: Sequence[Task]) -> Record:
    """
    Raises:
      ConfigError: ``args.out`` cannot be gone on with; in all processes.
    """
    asked = {
        "models": {opened.name: loading.pinned(opened).name for opened in models},
        "tasks": {task.name: task.to_json() for task in tasks},
        "settings": settings_of(args),
        "versions": {"r1jax": r1jax.__version__, "python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    main, record, failure = jax.process_index() == 0, None, None
    try:
        record = Record(args.out if main else None, asked, figures.kept)
    except ConfigError as e:
        failure = str(e)
    told = asking.from_first("record", {"failure": failure, "made": record and record.made})
    if told["failure"] is not None:
        raise ConfigError(told["failure"])
    record.made = told["made"]
    return record


def settings_of(args: commands.Evaluate) -> dict:
    """What of the arguments decides the answers, and is not said elsewhere."""
    names = ("template", "seed", "slots", "batch", "matmul_dtype", "dtype", "mesh", "engine")
    return {name: config.to_json(vars(args)[name]) for name in names}


# -- Results


def collect(args: commands.Evaluate, record: Record, tasks: Sequence[Task], rows: Rows) -> dict:
    """results.json without what the clock decides. Beside the command a function of the record alone: an evaluation that was
    interrupted has the same."""
    if jax.process_index() > 0:
        return {}
    first, *others = (args.model, *args.against)
    found = {
        model: {task.name: figures.figures(rows[model, task.name], task, args.k, args.safe_from) for task in tasks}
        for model in (first, *others)
    }
    against = {}
    for other in others:
        against[other] = {}
        for task in tasks:
            both = (rows[model, task.name] for model in (first, other))
            pair = figures.compare(*both, task, args.safe_from)
            against[other][task.name] = None if pair is None else dataclasses.asdict(pair)
    said = {"command": show.command("r1jax eval", args), **record.asked, "made": record.made}
    return said | {"figures": found, "against": against}


def stop_if_not_judged(results: dict, most: float) -> None:
    """
    Raises:
      GuardStop: more than a share ``most`` of the scores of a safety task failed.
    """
    for model, tasks in results.get("figures", {}).items():
        for task, found in tasks.items():
            scores = found["problems"] * found["samples"] * len(results["tasks"][task]["rewards"])
            if "groups" in found and found["not_scored"] > most * scores:
                raise GuardStop(
                    f"{model}: {found['not_scored']} of {scores} scores of {task} failed, more than workers.max_error_share "
                    f"{most}; the first: {found['not_scored/first']}"
                )
