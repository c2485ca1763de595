"""``r1jax generate``: answers to one prompt or to a file of prompts."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from r1jax import config
from r1jax.config import ConfigError, commands
from r1jax.data import jsonl, output, sources
from r1jax.data.tokenizer import Tokenizer
from r1jax.eval import answers as asking
from r1jax.eval.loaded import SMALLER, engine_for, find_template, load_sampler, open_model, speed
from r1jax.eval.tasks import control_name
from r1jax.plan.shortage import out_of_memory_is
from r1jax.rewards import Item, Pool, Score
from r1jax.rewards.risk_control import open_rules
from r1jax.rollout import Sampler
from r1jax.types import FINISH, Trajectories

CHUNK = 4  # tokens between two looks at an answer that is shown as it comes


@out_of_memory_is(f"lower --slots or --max-new-tokens; {SMALLER}")
def generate(args: commands.Generate) -> int:
    """Prints the answers, or writes them to ``args.out``. A single answer is printed as it comes. Standard output holds the
    answers alone; what else there is to say, and where several answers are printed the prompts, goes to standard error.

    An answer depends on seed, prompt, its place in the file and its number, never on the other prompts.

    Raises:
      ConfigError: the user's mistakes.
    """
    prompts = [args.prompt] if args.prompts is None else read_prompts(args.prompts)
    if args.out is not None:
        output.check_output(args.out)
    opened = open_model(args)
    rows = [{"prompt": prompt} for prompt in prompts]
    asked = asking.questions(rows, range(len(rows)), find_template(opened, args.template))
    with contextlib.ExitStack() as stack:
        review = None if args.risk_control is None else stack.enter_context(Review(args.risk_control, args.workers))
        sampler = load_sampler(opened, engine_for(asked, args.samples, args.slots), args)
        started = time.perf_counter()
        if args.out is None and len(asked) * args.samples == 1 and review is None:
            tokens = print_one(asked[0], sampler, opened.tokenizer, args.sampling)
        else:
            tokens = answer_all(asked, sampler, opened.tokenizer, args, review)
    say(speed(tokens, time.perf_counter() - started))
    return 0


def print_one(question: asking.Question, sampler: Sampler, tokenizer: Tokenizer, sampling: config.Sampling) -> int:
    """Prints one answer as it comes; returns its tokens."""
    for t, piece in stream(question, sampler, tokenizer, sampling):
        write(piece)
        tokens = int(t.length[0] - t.prompt_length[0])
    write("\n")
    return tokens


def stream(
    question: asking.Question, sampler: Sampler, tokenizer: Tokenizer, sampling: config.Sampling, round: int = 0
) -> Iterator[tuple[Trajectories, str]]:
    """The answer so far and what of its text is new, its prefill first. A character comes when all its bytes are there."""
    shown = ""
    for t in sampler.stream(question.ids, sampling, chunk=CHUNK, round=round, id=question.name):
        (text,) = asking.texts([question], t, tokenizer)
        if t.finish[0] < 0:
            text = text.rstrip("\ufffd")
        yield t, text[len(shown) :]
        shown = text


def answer_all(
    asked: list[asking.Question], sampler: Sampler, tokenizer: Tokenizer, args: commands.Generate, review: Review | None
) -> int:
    """Prints or writes the answers, a pass over the slots at a time; returns their tokens. What a review withholds appears
    nowhere."""
    together, tokens = max(1, sampler.slots // args.samples), 0
    with _output(args) as show:
        for first in range(0, len(asked), together):
            part = asked[first : first + together]
            t = sampler.generate([q.ids for q in part], args.sampling, samples=args.samples, ids=[q.name for q in part])
            each = [q for q in part for _ in range(args.samples)]
            texts = asking.texts(each, t, tokenizer)
            rows = [described(each[i], t, i, text) for i, text in enumerate(texts)]
            for row in rows if review is None or jax.process_index() > 0 else review(rows):
                show(row)
            tokens += int((t.length - t.prompt_length).sum())
    return tokens


def described(question: asking.Question, t: Trajectories, i: int, text: str) -> dict:
    """Answer i as a row of the output. ``logprobs`` are those of ``tokens`` at the sampling temperature, of greedy answers at
    temperature 1."""
    here = slice(int(t.prompt_length[i]), int(t.length[i]))
    return {
        "prompt": question.row["prompt"],
        "prompt_tokens": list(question.ids),
        "sample": int(t.sample[i]),
        "text": text,
        "tokens": t.tokens[i, here].tolist(),
        "logprobs": t.logprobs[i, here].tolist(),
        "finish_reason": FINISH[int(t.finish[i])],
    }


class Review:
    """Risk control: which answers are shown, and what stands in the place of the others. A context manager.

    Args:
      rules: a file, see ``rewards.risk_control``.

    Raises:
      ConfigError: the rules, their keywords or their judge cannot be read or loaded.
    """

    def __init__(self, rules: Path, workers: config.Workers):
        try:
            self._instead = open_rules(str(rules.expanduser().absolute())).rules.answer
        except ValueError as e:
            raise ConfigError(f"--risk-control: {e}") from e
        self._name = control_name(rules)
        self._pool = Pool(workers)

    def __enter__(self) -> Review:
        return self

    def __exit__(self, *_) -> None:
        self._pool.close()

    def __call__(self, rows: list[dict]) -> list[dict]:
        """The rows, each with ``risk_control``: {shown, status, why}. One that is withheld keeps neither text nor tokens."""
        items = [Item(row["prompt"], row["text"], {"prompt": row["prompt"], "answer": None}, (self._name,)) for row in rows]
        return [self._decided(row, scores[self._name]) for row, scores in zip(rows, self._pool.score(items), strict=True)]

    def _decided(self, row: dict, score: Score) -> dict:
        shown = score.status == "ok" and score.value >= 1
        said = {"risk_control": {"shown": shown, "status": score.status, "why": score.why}}
        if shown:
            return row | said
        return row | {"text": self._instead, "tokens": [], "logprobs": [], "finish_reason": "withheld"} | said


def read_prompts(path: Path) -> list[str | list[dict]]:
    """The prompts of a JSONL file.

    Raises:
      ConfigError: the file cannot be read, or a row has no prompt; names file and line.
    """
    found = jsonl.read(path)
    for where, row in found:
        if problem := sources.prompt_problem(row):
            raise ConfigError(f"{where}: {problem}")
    return [row["prompt"] for _, row in found]


@contextlib.contextmanager
def _output(args: commands.Generate) -> Iterator[Callable[[dict], None]]:
    """What takes each of several answers: the file, or the terminal."""
    if jax.process_index() > 0:
        yield lambda row: None
    elif args.out is None:
        yield _printer(args.samples)
    else:
        with output.open_jsonl(args.out) as file:
            yield lambda row: output.write_row(file, row)


def _printer(samples: int) -> Callable[[dict], None]:
    def show(row: dict) -> None:
        prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
        say(f"--- {prompt}" + (f" ({row['sample'] + 1} of {samples})" if samples > 1 else ""))
        write(row["text"] + "\n")

    return show


def write(text: str) -> None:
    """To standard output, by one process."""
    if jax.process_index() == 0:
        print(text, end="", flush=True)


def say(line: str) -> None:
    """To standard error, by one process."""
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)
