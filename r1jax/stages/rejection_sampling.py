"""Rejection sampling: prompts -> answers of a model -> rewards -> the right and readable ones -> rows to train on.

R1's cold start and its rejection sampling are this stage with other settings. In the run directory, beside ``rows.jsonl``:

    samples.jsonl      every answer with its rewards; ``dropped`` and ``why`` where it was not kept
    report.jsonl       each answer that a later rule left out: duplicate, more than per_prompt, ...
    rewritten.jsonl    what the rewriting model wrote, if there is one
    statistics.json    how many were dropped for which reason, per source

Every process takes the same decisions, the first one writes. A batch of prompts counts once its line of ``metrics.jsonl`` is
whole; what a kill left behind it is dropped and sampled again, to the same answers. All after the sampling is a function of
what was sampled.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
from rich.console import Console

from r1jax import config, loading, mirror, processes, rundir
from r1jax.config.base import GuardStop
from r1jax.data import output, selection
from r1jax.data.selection import Counts, Dropped
from r1jax.eval import answers as asking
from r1jax.eval.answers import Answers, Question, from_first
from r1jax.observe import compiling, jsonl
from r1jax.observe.display import Display
from r1jax.observe.energy import Meter
from r1jax.observe.ledger import Ledger
from r1jax.observe.metrics import MetricsWriter, read_metrics
from r1jax.observe.phases import Phase
from r1jax.observe.samples import SamplesWriter
from r1jax.observe.watchdog import Watching
from r1jax.plan import spent
from r1jax.rewards import Pool
from r1jax.rollout import Sampler
from r1jax.rundir import RunDir
from r1jax.stages.prepare import PreparedRows
from r1jax.stages.rewriting import rewriter
from r1jax.stages.workspace import Preempted, told_to_end
from r1jax.types import FINISH

UPLOAD_EVERY = 600.0
"""Seconds: all answers that there are travel to a bucket each time."""
PATIENCE = 12 * 3600.0
"""Seconds: process 0 alone chooses among all answers, while the others wait."""


def make(found: PreparedRows, run: RunDir, title: str) -> None:
    """Runs to the end, from wherever an earlier attempt was.

    Raises:
      Preempted: a SIGTERM or SIGHUP arrived; what was sampled is saved.
      GuardStop: too many scores failed, or no answer was kept.
    """
    with open_making(found, run, title) as work:
        sample_all(work)
        chosen = choose(work)
        stop_if_none_is_kept(work, chosen)
        if found.stage.rewrite.model:
            rewrite(work, chosen)
        count = 0
        if work.main:
            with work.phase("select"):
                count = write_rows(work)
            work.ledger.save(work.batches)
        stop_if_none_is_kept(work, from_first("kept rows", count, PATIENCE))
        if work.main:
            run.finish(work.batches)
    processes.meet("rows made")  # the next stage reads what was written


@dataclass
class Making:
    """What the stage works with."""

    found: PreparedRows
    run: RunDir
    pool: Pool
    display: Display
    ledger: Ledger
    done: int
    """Batches that are sampled."""
    batches: int
    terminating: threading.Event
    uploaded: float = field(default_factory=time.monotonic)

    @property
    def main(self) -> bool:
        return jax.process_index() == 0

    @contextlib.contextmanager
    def phase(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Phase]:
        with self.display.phase(name, total, unit) as phase:
            yield phase
        self.account(phase)

    def account(self, phase: Phase) -> None:
        self.ledger.add(phase.name, phase.seconds, phase.tokens)

    def upload(self) -> None:
        """Of a run on ``gs://``, from time to time."""
        if time.monotonic() - self.uploaded > UPLOAD_EVERY:
            self.run.upload()
            self.uploaded = time.monotonic()

    def row(self, number: int) -> dict:
        """The row of a prompt, of all sources one after the other."""
        for _, rows in self.found.prompts:
            if number < len(rows):
                return rows[number]
            number -= len(rows)
        raise IndexError(number)


@contextlib.contextmanager
def open_making(found: PreparedRows, run: RunDir, title: str) -> Iterator[Making]:
    stage, main = found.stage, jax.process_index() == 0
    for source, rows in found.joined:
        if "completion" not in rows[0]:
            raise config.ConfigError(f"join: source {source.name!r} has rows without a 'completion'; only such can be joined")
    batches = -(-sum(len(rows) for _, rows in found.prompts) // stage.together)
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(Pool(stage.workers))
        pool.check([*(name for s in stage.sources for name in s.rewards), *stage.judge])
        written = read_metrics(run.path) if main and run.metrics.exists() else []
        done = from_first("batches done", max((int(row["step"]) for row in written), default=0))
        if main and not done:
            run.record(found.commits, found.digests, inputs=found.inputs)
        console = None if main else Console(file=io.StringIO())
        display = stack.enter_context(Display(title, batches, console=console, first_step=done))
        meter = stack.enter_context(Meter()) if main else None
        ledger = Ledger(run.path, found.mesh.size, resumed_at=done or None, meter=meter)
        if done:
            display.note(f"going on from batch {done} of {batches} of {run.name}")
        work = Making(found, run, pool, display, ledger, done, batches, stack.enter_context(told_to_end()))
        stack.enter_context(compiling.watch(partial(display.phase, "compile"), work.account))
        logs = run.path / mirror.LOGS
        stack.enter_context(
            Watching(stage.watchdog, display.phases, lambda: display.last_step, logs, process=jax.process_index())
        )
        yield work


# -- Sampling


def sample_all(work: Making) -> None:
    """Every batch that is not sampled yet."""
    if work.done == work.batches:
        return
    found, stage = work.found, work.found.stage
    tokenizer = found.tokenizer
    with contextlib.ExitStack() as stack:
        metrics = samples = None
        if work.main:
            metrics = stack.enter_context(MetricsWriter(work.run.path, tensorboard=False, resumed_at=work.done))
            samples = stack.enter_context(SamplesWriter(work.run.path, resumed_at=work.done))
        sampler = Sampler(
            found.model, stage.engine, found.mesh, end_ids=tokenizer.end_ids, text=tokenizer.decode, seed=stage.seed
        )
        with work.phase("load"):
            sampler.load(found.opened.load(sampler.specs, sampler.shardings, lambda done, total: None), copy=False)
        while work.done < work.batches:
            asked, left_out = next_questions(work)
            values = {f"data/left_out/{source}": float(n) for source, n in left_out.items()}
            values |= {f"data/prompts/{s.name}": 0.0 for s in stage.sources}
            for question in asked:
                values[f"data/prompts/{question.row['source']}"] += 1
            if asked:
                answers, dropped = answer(work, sampler, asked)
                values |= asking.reward_metrics(answers)
                values["kept"] = sum(d is None for d in dropped) / len(dropped)
                if samples is not None:
                    samples.write(work.done + 1, list(described(answers, dropped)))
            work.done += 1
            if metrics is not None:
                metrics.write(work.done, values)
                work.ledger.save(work.done)
                work.upload()
            work.display.step(work.done, values)
            if processes.any_of("told to end", work.terminating.is_set()):
                raise Preempted(f"told to end: saved {work.done} of {work.batches} batches of {work.run.name}")


def next_questions(work: Making) -> tuple[list[Question], dict[str, int]]:
    """The prompts of the next batch, named by their number, and how many of each source were too long."""
    stage = work.found.stage
    begin = work.done * stage.together
    numbers = range(begin, min(begin + stage.together, sum(len(rows) for _, rows in work.found.prompts)))
    found = asking.questions([work.row(i) for i in numbers], numbers, work.found.template)
    fits = [q for q in found if len(q.ids) <= stage.engine.max_prompt_tokens]
    left_out: dict[str, int] = {}
    for q in found:
        if len(q.ids) > stage.engine.max_prompt_tokens:
            left_out[q.row["source"]] = left_out.get(q.row["source"], 0) + 1
    return fits, left_out


def answer(work: Making, sampler: Sampler, asked: list[Question]) -> tuple[Answers, list[Dropped | None]]:
    """The answers to a batch, and why each is dropped."""
    stage, found = work.found.stage, work.found
    with work.phase("rollout", len(asked) * stage.samples, "answers"):
        sampled = asking.sample(
            asked, sampler=sampler, pool=work.pool, tokenizer=found.tokenizer, sampling=stage.sampling, samples=stage.samples,
            round=0, weights={s.name: s.rewards for s in stage.sources}, progress=work.display.advance,
        )  # fmt: skip
    work.ledger.add("rollout", flops=spent.sampled(found.model, sampled.trajectories, stage.samples))
    with work.phase("reward"):
        answers = sampled.scored()
    stop_if_scores_fail(answers.scores, stage.workers.max_error_share)
    with work.phase("select"):
        finish = [FINISH[int(f)] for f in answers.trajectories.finish]
        each = zip(answers.questions, answers.completions, answers.scores, finish, strict=True)
        dropped = [selection.verdict(stage, q.row, text, scores, end) for q, text, scores, end in each]
    return answers, judged(work, answers, dropped)


def judged(work: Making, answers: Answers, dropped: list[Dropped | None]) -> list[Dropped | None]:
    """``dropped``, and the answers that the judge does not take. It is asked about the others alone; its scores join theirs."""
    judge, left = work.found.stage.judge, [i for i, d in enumerate(dropped) if d is None]
    if not judge or not left:
        return dropped
    with work.phase("judge", len(left), "answers"):
        scoring = asking.Scoring(work.pool, {s.name: judge for s in work.found.stage.sources})
        ids = asking.sampled_ids(answers.trajectories)
        scoring.submit(
            range(len(left)), [answers.questions[i] for i in left], [answers.completions[i] for i in left],
            [ids[i] for i in left],
        )  # fmt: skip
        scores = scoring.scores()
    stop_if_scores_fail(scores, work.found.stage.workers.max_error_share)
    dropped = list(dropped)
    for i, found in zip(left, scores, strict=True):
        answers.scores[i].update(found)
        dropped[i] = selection.below(found, judge)
    return dropped


def described(answers: Answers, dropped: list[Dropped | None]) -> Iterator[dict]:
    """Rows of samples.jsonl."""
    for i, reason in enumerate(dropped):
        rule, why = reason or ("", "")
        yield answers.sample(i, dropped=rule, why=why)


def stop_if_scores_fail(scores: list[dict], most: float) -> None:
    failed = [(name, s) for each in scores for name, s in each.items() if s.status != "ok"]
    count = sum(map(len, scores))
    if len(failed) > most * count:
        name, first = failed[0]
        raise GuardStop(
            f"{len(failed)} of {count} scores failed, more than workers.max_error_share {most}; the first: reward {name} "
            f"{first.status}: {first.why}"
        )


# -- Choosing


def choose(work: Making) -> int:
    """Writes the rows that are kept, but for a rewriting, to chosen.jsonl and which of the right and readable ones are not to
    report.jsonl. Returns how many are kept.
    """
    count = 0
    if work.main:
        with work.phase("select"):
            stage, path = work.found.stage, work.run.path
            step = model_step(work.found.opened.name)
            with output.open_jsonl(path / "report.jsonl") as report, output.open_jsonl(path / "chosen.jsonl") as file:
                for row in selection.choose(stage, partial(candidates, work, step), partial(_report, report)):
                    output.write_row(file, row)
                    count += 1
    return from_first("chosen rows", count, PATIENCE)


def stop_if_none_is_kept(work: Making, count: int) -> None:
    if not count:
        raise GuardStop(
            f"none of the answers was kept ({mirror.there(work.run.samples)} says why of each, in 'dropped'); lower what keep "
            "and readable ask, or sample more"
        )


def candidates(work: Making, step: int | None) -> Iterator[dict]:
    """The answers that were right and readable, as rows to train on."""
    stage = work.found.stage
    for sample in jsonl.read(work.run.samples):
        if sample["dropped"]:
            continue
        earned = {name: s["value"] for name, s in sample["rewards"].items()}
        least = stage.least(sample["source"]) | stage.judge
        provenance = {
            "source": sample["source"], "model": stage.init, "step": step, "prompt": sample["prompt_id"],
            "sample": sample["sample"], "rewards": earned,
            "why": ", ".join(f"{name} {earned[name]:g} >= {value:g}" for name, value in least.items()) + ", readable",
        }  # fmt: skip
        completion = selection.styled(sample["completion"], stage.style)
        yield {**work.row(sample["prompt_id"]), "completion": completion, "provenance": provenance}


def model_step(name: str) -> int | None:
    """Of a run, the step of the checkpoint that it stands for."""
    path, step = rundir.parse_run_name(name)
    if not rundir.is_run(path) or isinstance(step, int):
        return step if isinstance(step, int) else None
    return rundir.parse_run_name(loading.pinned(loading.open_model(name)).name)[1]


def _report(file: Any, row: dict, rule: str, why: str) -> None:
    place = {name: row["provenance"][name] for name in ("source", "prompt", "sample")}
    output.write_row(file, {**place, "dropped": rule, "why": why})


# -- Rewriting


def rewrite(work: Making, count: int) -> None:
    """Writes each of the ``count`` chosen rows again, to rewritten.jsonl, with ``dropped`` and ``why`` where what came is not
    kept."""
    stage, path = work.found.stage, work.run.path
    file = path / "rewritten.jsonl"
    lines = selection.whole_lines(file) if work.main else []
    done = from_first("rewritten rows", len(lines) if len(lines) == count else len(lines) // stage.together * stage.together)
    if work.main:
        file.write_bytes(b"".join(lines[:done]))
    if done == count:
        return
    write_again = rewriter(work.found)
    with contextlib.ExitStack() as stack:
        chosen = itertools.islice(jsonl.read(path / "chosen.jsonl"), done, None) if work.main else None
        out = stack.enter_context(file.open("ab")) if work.main else None
        while done < count:
            rows = from_first("rows to rewrite", list(itertools.islice(chosen, stage.together)) if work.main else None)
            numbers = range(done, done + len(rows))
            with work.phase("rewrite", len(rows), "answers"):
                turns = write_again(rows, numbers)
            with work.phase("reward"):
                verdicts = scored_again(work, rows, turns)
            if out is not None:
                for row, turn, dropped in zip(rows, turns, verdicts, strict=True):
                    rule, why = dropped or ("", "")
                    provenance = {**row["provenance"], "rewritten_by": stage.rewrite.model}
                    completion = row["completion"] if turn is None else selection.styled(turn, stage.style)
                    again = {**row, "completion": completion, "provenance": provenance}
                    out.write(jsonl.line({"row": again, "dropped": rule, "why": why}))
                out.flush()
                work.ledger.save(work.batches)
                work.upload()
            done += len(rows)
            if processes.any_of("told to end", work.terminating.is_set()):
                raise Preempted(f"told to end: saved {done} of {count} rewritten answers of {work.run.name}")


def scored_again(work: Making, rows: list[dict], turns: list[str | None]) -> list[Dropped | None]:
    """Why each rewritten answer is dropped: it must earn and read as the answer had to."""
    stage, found = work.found.stage, work.found
    given = [i for i, turn in enumerate(turns) if turn is not None]
    verdicts: list[Dropped | None] = [("not rewritten", "the model gave no <think>...</think>")] * len(rows)
    if not given:
        return verdicts
    scoring = asking.Scoring(work.pool, {s.name: s.rewards | stage.judge for s in stage.sources})
    asked = [Question(rows[i], [], "", i) for i in given]
    texts = [turns[i] for i in given]
    scoring.submit(range(len(given)), asked, texts, [found.tokenizer.encode(text) for text in texts])
    scores = scoring.scores()
    stop_if_scores_fail(scores, stage.workers.max_error_share)
    for i, text, earned in zip(given, texts, scores, strict=True):
        dropped = selection.verdict(stage, rows[i], text, earned, "stop") or selection.below(earned, stage.judge)
        verdicts[i] = dropped and (f"rewritten: {dropped[0]}", dropped[1])
    return verdicts


# -- What is written


def write_rows(work: Making) -> int:
    """Writes rows.jsonl, the joined rows behind the kept ones, and statistics.json. Returns how many answers were kept."""
    stage, path = work.found.stage, work.run.path
    counts = counted(work)
    joined: dict[str, int] = {}
    with output.open_jsonl(rundir.rows_of(path)) as file:
        for row in final_rows(work, counts):
            counts.of(row["source"])["kept"] += 1
            output.write_row(file, row)
        for source, rows in work.found.joined:
            numbers = selection.drawn(range(len(rows)), stage.rows.get(source.name), stage.seed, source.name)
            joined[source.name] = len(numbers)
            for i in numbers:
                if "completion" not in rows[i]:
                    raise config.ConfigError(f"join: row {i} of source {source.name!r} has no 'completion'")
                output.write_row(file, {**rows[i], "provenance": {"source": source.name, "row": i}})
    told = counts.told()
    told |= {"joined": joined, "rows": told["kept"] + sum(joined.values())}
    found = {s: p["kept"] for s, p in told["sources"].items()} | joined
    if short := {s: f"{found.get(s, 0)} of {n}" for s, n in stage.rows.items() if found.get(s, 0) < n}:
        told["fewer_than_asked"] = short
        work.display.note(f"fewer rows than asked for: {', '.join(f'{s} {said}' for s, said in short.items())}")
    with output.replacing(path / "statistics.json") as part:
        part.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    (path / "chosen.jsonl").unlink(missing_ok=True)
    dropped = ", ".join(f"{reason} {n:,}" for reason, n in told["dropped"].items()) or "none"
    work.display.note(f"{told['kept']:,} of {told['answers']:,} answers kept; dropped: {dropped}")
    work.display.note(f"{told['rows']:,} rows in {mirror.there(rundir.rows_of(path))}")
    return told["kept"]


def final_rows(work: Making, counts: Counts) -> Iterator[dict]:
    path = work.run.path
    if not work.found.stage.rewrite.model:
        yield from jsonl.read(path / "chosen.jsonl")
        return
    for line in jsonl.read(path / "rewritten.jsonl"):
        if line["dropped"]:
            counts.dropped(line["row"]["source"], line["dropped"])
        else:
            yield line["row"]


def counted(work: Making) -> Counts:
    """What was asked, answered and dropped, but for the rewriting."""
    counts = Counts()
    for step in read_metrics(work.run.path):
        for key, value in step.items():
            for name, prefix in (("prompts", "data/prompts/"), ("left_out", "data/left_out/")):
                if key.startswith(prefix):
                    counts.of(key.removeprefix(prefix))[name] += int(value)
    for sample in jsonl.read(work.run.samples):
        counts.of(sample["source"])["answers"] += 1
        if sample["dropped"]:
            counts.dropped(sample["source"], sample["dropped"])
    for line in jsonl.read(work.run.path / "report.jsonl"):
        counts.dropped(line["source"], line["dropped"])
    return counts
