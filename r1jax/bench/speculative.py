"""What drafting gains: ``python -m r1jax.bench.speculative MODEL [--rows SOURCE]``.

MODEL has a multi-token-prediction module that was trained, for example the run of a copy of ``configs/quickstart.py`` whose
model has ``mtp_depth=1``. SOURCE is a file of rows with prompts or ``pkg.mod:f``; without it, the quickstart's sums. At 1, 8
and 32 rows together, ordinary and speculative sampling take turns; medians are printed:

    answers    tokens a second, prefills and refills included, at temperature 1
    steps      milliseconds for one decode step, and the gain were there nothing else: tokens per step over their ratio
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from r1jax import config, loading, sharding
from r1jax.data import sources
from r1jax.data.template import Template
from r1jax.rollout import Sampler

ROWS, ANSWERS, CAP, STEPS, LENGTH, TURNS = (1, 8, 32), 8, 64, 64, 256, 5
HOW = {"greedy": False, "top_p": 1.0}


def answers(sampler: Sampler, prompts: Sequence[list[int]]) -> None:
    sampler.generate(prompts, config.Sampling(max_new_tokens=CAP))


def steps(sampler: Sampler) -> Callable[[], None]:
    """Rows that have ended cost what others do, and end no loop that waits for one more than there are."""
    programs = sampler.programs(1)

    def run():
        state = programs.decode(
            sampler.params, state=states.pop(), steps=np.int32(STEPS), enough=np.int32(sampler.slots + 1),
            temperature=np.float32(1), **HOW,
        )  # fmt: skip
        states.append(jax.block_until_ready(state))

    states = [programs.empty(length=LENGTH, cap=CAP)]
    return run


def timed(runs: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Seconds of each run, in turns after a first that compiles."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(TURNS + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def compare(opened: loading.Opened, prompts: Sequence[list[int]], rows: int) -> None:
    mesh = sharding.make_mesh(config.Mesh(fsdp=1))
    longest = max(map(len, prompts))
    samplers = {
        name: Sampler(
            opened.model, config.Engine(slots=rows, max_prompt_tokens=longest, speculative=on), mesh,
            end_ids=opened.tokenizer.end_ids,
        )
        for name, on in (("ordinary", False), ("speculative", True))
    }  # fmt: skip
    params = opened.load(samplers["ordinary"].specs, samplers["ordinary"].shardings)
    for sampler in samplers.values():
        sampler.load(params)
    asked = [prompts[i % len(prompts)] for i in range(rows * ANSWERS)]
    whole = timed({name: lambda one=one: answers(one, asked) for name, one in samplers.items()})
    usage = {name: (one.usage.tokens + len(asked), one.usage.metrics(rows)) for name, one in samplers.items()}
    each = timed({name: steps(one) for name, one in samplers.items()})
    rates = {name: usage[name][0] / statistics.median(seconds) for name, seconds in whole.items()}
    per_step = {name: 1e3 * statistics.median(seconds) / STEPS for name, seconds in each.items()}
    for name in samplers:
        slowest, fastest = (usage[name][0] / f(whole[name]) for f in (max, min))
        spread = f"{slowest:.0f} to {fastest:.0f}"
        print(f"{rows:3} rows  {name:12}{rates[name]:9.0f} tokens/s ({spread}), {per_step[name]:.3f} ms a step")
    said = usage["speculative"][1]
    ratio = per_step["speculative"] / per_step["ordinary"]
    accepted, tokens = said["rollout/drafts_accepted"], said["rollout/tokens_per_step"]
    print(
        f"{rows:3} rows  accepted {accepted:.3f}, {tokens:.3f} tokens a step; a step costs {ratio:.2f} x: gain "
        f"{tokens / ratio:.2f} of steps, "
        f"{rates['speculative'] / rates['ordinary']:.2f} of answers",
        flush=True,
    )


def main(arguments: Sequence[str]) -> None:
    match arguments:
        case [model]:
            source = config.Source(split="test")
        case [model, "--rows", path]:
            source = config.Source(path=path, name="rows")
        case _:
            raise SystemExit(__doc__.partition("\n")[0])
    opened = loading.open_model(model)
    template = Template(opened.text, opened.tokenizer)
    rows = sources.load(source)
    prompts = [template.encode(rows[i]["prompt"])[0] for i in range(min(len(rows), max(ROWS) * ANSWERS))]
    for count in ROWS:
        compare(opened, prompts, count)


if __name__ == "__main__":
    main(sys.argv[1:])
