"""What is asked in an evaluation: rows, how they are graded, and how often and how long a model may answer."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r1jax import config
from r1jax.config import ConfigError, commands
from r1jax.data import jsonl, known, sources
from r1jax.data.files import appended
from r1jax.data.template import Template
from r1jax.eval.answers import Question, questions
from r1jax.loading import Opened
from r1jax.rewards.load import files_of

PROTOCOL_TOKENS = 32_768
"""The most of an answer in R1's evaluation (arXiv 2501.12948v2, D.1)."""
MADE = 512
"""Problems taken of a task that code makes, where nothing else is said."""
SAFETY, JAILBREAKS = "safety", "safety, jailbreaks"


@dataclass(frozen=True)
class Task:
    name: str
    rows: Sequence[dict]
    rewards: tuple[str, ...]
    """The first decides: what is right, or what is safe."""
    samples: int
    sampling: config.Sampling
    identity: str
    """Names the rows' content, see ``sources.Rows.identity``."""
    about: dict[str, Any] = field(default_factory=dict)
    """JSON values that say where the rows come from."""
    request: str = ""
    """Put behind each prompt where the template does not say in which form to answer."""

    @property
    def is_safety(self) -> bool:
        return self.name in (SAFETY, JAILBREAKS)

    @property
    def round(self) -> int:
        """31 bits: a random stream of the rows' own, wherever they lie."""
        return zlib.crc32(self.identity.encode()) >> 1

    def questions(self, template: Template) -> list[Question]:
        rows = self.rows if template.says_form else [appended(row, self.request) for row in self.rows]
        return questions(rows, range(len(rows)), template)

    def to_json(self) -> dict[str, Any]:
        return {
            **self.about, "identity": self.identity, "problems": len(self.rows), "samples": self.samples,
            "rewards": list(self.rewards), "graders": digests_of(self.rewards), "sampling": config.to_json(self.sampling),
            "request": self.request,
        }  # fmt: skip


def digests_of(rewards: Sequence[str]) -> dict[str, str]:
    """Path -> SHA-256 of the user's files that grade.

    Raises:
      ConfigError: a reward cannot be loaded.
    """
    try:
        files = {file for name in rewards for file in files_of(name)}
    except ValueError as e:
        raise ConfigError(str(e)) from e
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


def find_tasks(args: commands.Evaluate, models: Sequence[Opened]) -> list[Task]:
    """
    Raises:
      ConfigError: a task is not there or malformed, or is asked for fewer answers than a k of pass@k.
    """
    tasks: list[Task] = []
    for name in args.tasks:
        tasks += safety_tasks(args) if name == SAFETY else [solving_task(name, args, models)]
    for task in tasks:
        if too_large := [k for k in args.k if k > task.samples and not task.is_safety]:
            raise ConfigError(f"pass@{too_large[0]} needs as many answers: {task.name} has {task.samples}; raise --samples")
    return tasks


def solving_task(name: str, args: commands.Evaluate, models: Sequence[Opened]) -> Task:
    source = sources.named(name, reward=args.reward, limit=args.limit)
    rows = sources.load(source)
    if args.limit is None and not rows.digest and len(rows) > MADE:
        rows = sources.load(dataclasses.replace(source, limit=MADE))
    usual = source.options.get("known")
    tokens = args.sampling.max_new_tokens
    if usual is not None and args.max_new_tokens is None:
        tokens = min([PROTOCOL_TOKENS, *filter(None, map(room, models))])
    return Task(
        name=source.name,
        rows=rows,
        rewards=tuple(source.rewards),
        samples=args.samples or known.samples(usual),
        sampling=dataclasses.replace(args.sampling, max_new_tokens=tokens),
        identity=rows.identity,
        about={"path": source.path, "split": source.split, "options": source.options, "commit": rows.commit},
        request="" if usual is None or "append" in source.options else known.find(usual).request,
    )


def room(opened: Opened) -> int | None:
    """Tokens that the model was made for: of a run those of its rows, of other models what their config says; None if nothing
    does."""
    return opened.trained_length or (opened.origin or {}).get("max_position_embeddings")


# -- Safety


def safety_tasks(args: commands.Evaluate) -> list[Task]:
    """The rows as they are, and with jailbreaks each once more in one of these."""
    rows = read_safety(args.rows)
    rows = rows if args.limit is None else rows[: args.limit]
    rewards = (args.judge, args.refusal)
    if args.risk_control is not None:
        rewards += (control_name(args.risk_control),)

    def task(name: str, rows: list[dict], files: list[Path]) -> Task:
        digest = hashlib.sha256(b"".join(file.expanduser().read_bytes() for file in files)).hexdigest()
        about = {"path": str(args.rows), "jailbreaks": None if len(files) == 1 else str(files[1])}
        named = [{"answer": None, **row, "source": name} for row in rows]
        return Task(name, named, rewards, args.samples or 1, args.sampling, f"sha256:{digest}", about)

    found = [task(SAFETY, rows, [args.rows])]
    if args.jailbreaks is not None:
        templates = read_jailbreaks(args.jailbreaks)
        found.append(task(JAILBREAKS, [jailbroken(row, templates) for row in rows], [args.rows, args.jailbreaks]))
    return found


def control_name(rules: Path) -> str:
    """The reward that says whether an answer is shown."""
    return f"risk_control{json.dumps({'rules': str(rules.expanduser().absolute())})}"


def read_safety(path: Path) -> list[dict]:
    """
    Raises:
      ConfigError: the file cannot be read, or a row is malformed; names file and line.
    """
    found = jsonl.read(path)
    for where, row in found:
        if problem := sources.prompt_problem(row):
            raise ConfigError(f"{where}: {problem}")
        for name in ("category", "language", "benchmark"):
            if not isinstance(row.get(name, ""), str):
                raise ConfigError(f"{where}: {name!r} is {type(row[name]).__name__}; it must be a string")
    return [row for _, row in found]


def read_jailbreaks(path: Path) -> list[str]:
    """
    Raises:
      ConfigError: the file cannot be read, or a row has no template with a place for the prompt; names file and line.
    """
    found = jsonl.read(path)
    for where, row in found:
        if not isinstance(row.get("template"), str) or "{prompt}" not in row["template"]:
            raise ConfigError(f"{where}: a row must hold 'template', a text with {{prompt}} where the question belongs")
    return [row["template"] for _, row in found]


def jailbroken(row: dict, templates: Sequence[str]) -> dict:
    """The row with its prompt, of messages the last, in one of the templates, which the prompt alone decides."""
    prompt = row["prompt"]
    draw = random.Random(json.dumps(prompt, sort_keys=True)).random()  # the one stream that Python promises to keep
    number = int(draw * len(templates))
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    text = templates[number].replace("{prompt}", text)
    prompt = text if isinstance(prompt, str) else [*prompt[:-1], {**prompt[-1], "content": text}]
    return {**row, "prompt": prompt, "jailbreak": number}
