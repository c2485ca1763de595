"""``r1jax generate``: answers to one prompt or to a file of prompts."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax

from r1jax import loading
from r1jax.config import ConfigError, commands
from r1jax.eval import answers as asking
from r1jax.eval import files
from r1jax.eval.loaded import find_template, load_sampler, speed
from r1jax.types import FINISH, Trajectories


def generate(args: commands.Generate) -> int:
    """Prints the answers, or writes them to ``args.out``. Standard output holds the answers alone; what else there is to say,
    and where several answers are printed the prompts, goes to standard error.

    An answer depends on seed, prompt, its place in the file and its number, never on the other prompts.

    Raises:
      ConfigError: the user's mistakes.
    """
    prompts = [args.prompt] if args.prompts is None else read_prompts(args.prompts)
    if args.out is not None:
        files.check_output(args.out)
    opened = loading.open_model(args.model)
    rows = [{"prompt": prompt} for prompt in prompts]
    asked = asking.questions(rows, range(len(rows)), find_template(opened, args.template))
    sampler = load_sampler(opened, asked, args.samples, args.mesh, args.seed)
    together = max(1, sampler.slots // args.samples)
    tokens, started = 0, time.perf_counter()
    with _output(args, several=len(asked) * args.samples > 1) as show:
        for first in range(0, len(asked), together):
            part = asked[first : first + together]
            t = sampler.generate([q.ids for q in part], args.sampling, samples=args.samples, ids=[q.name for q in part])
            each = [q for q in part for _ in range(args.samples)]
            for i, text in enumerate(asking.texts(each, t, opened.tokenizer)):
                show(described(each[i], t, i, text))
            tokens += int((t.length - t.prompt_length).sum())
    _say(speed(tokens, time.perf_counter() - started))
    return 0


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


def read_prompts(path: Path) -> list[str | list[dict]]:
    """The prompts of a JSONL file.

    Raises:
      ConfigError: the file cannot be read, or a row has no prompt; names file and line.
    """
    prompts = []
    for where, row in files.read_jsonl(path):
        prompt = row.get("prompt")
        messages = prompt if isinstance(prompt, list) else []
        if not (isinstance(prompt, str) or messages and all(map(_is_message, messages))):
            raise ConfigError(f"{where}: 'prompt' must be a string or a list of messages {{'role': str, 'content': str}}")
        prompts.append(prompt)
    return prompts


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


@contextlib.contextmanager
def _output(args: commands.Generate, several: bool):
    """What takes each answer: the file, or the terminal."""
    if jax.process_index() > 0:
        yield lambda row: None
    elif args.out is None:
        yield _printer(several, args.samples)
    else:
        with files.open_jsonl(args.out) as file:
            yield lambda row: files.write_row(file, row)


def _printer(several: bool, samples: int) -> Callable[[dict], None]:
    def show(row: dict) -> None:
        if several:
            prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
            _say(f"--- {prompt}" + (f" ({row['sample'] + 1} of {samples})" if samples > 1 else ""))
        print(row["text"], flush=True)

    return show


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)
