"""A model that answers: opened as asked, its weights in a sampler, its template."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax

from r1jax import config, loading, sharding
from r1jax.config import commands
from r1jax.data.template import Template
from r1jax.eval.answers import Question
from r1jax.loading import Opened
from r1jax.models import decoder
from r1jax.plan import memory
from r1jax.rollout import Sampler

SLOTS = 64  # rows decoded together at most, if --slots does not say
SMALLER = "--dtype bfloat16 --matmul-dtype bfloat16 halves most of it; more devices share it (the weights by --mesh.tensor)"
ROUND_TO = 8  # prompt lengths


def open_model(args: commands.Computing, name: str | None = None) -> Opened:
    """``name``, or ``args.model``, with its types as asked.

    Raises:
      ConfigError: there is no such model.
    """
    opened = loading.open_model(name or args.model)
    types = {"matmul_dtype": args.matmul_dtype, "dtype": args.dtype}
    types = {name: dtype for name, dtype in types.items() if dtype is not None}
    return dataclasses.replace(opened, model=dataclasses.replace(opened.model, **types))


def find_template(opened: Opened, name: str, system: str | None = None) -> Template:
    """The template called ``name``; ``auto`` is the one the model was trained with, as is its system message where ``system``
    is None."""
    chosen = {"template": None if name == "auto" else name, "system": system}
    text = dataclasses.replace(opened.text, **{key: value for key, value in chosen.items() if value is not None})
    return Template(text, opened.tokenizer)


def engine_for(asked: Sequence[Question], samples: int, slots: int | None = None) -> config.Engine:
    """Room for ``samples`` answers to each question, ``slots`` of them together."""
    return config.Engine(
        slots=min(slots or SLOTS, len(asked) * samples),
        max_prompt_tokens=-(-max(len(q.ids) for q in asked) // ROUND_TO) * ROUND_TO or ROUND_TO,
    )


def load_sampler(opened: Opened, engine: config.Engine, args: commands.Answering) -> Sampler:
    """A sampler with the model's weights; fewer slots than ``engine`` has where these do not fit and were not asked for.

    Raises:
      ConfigError: not even one slot fits, or drafts are asked for and the model has no module that makes them.
    """
    engine = reading(engine, args)
    if args.slots is None:
        engine = fit(engine, opened.model, sharding.make_mesh(args.mesh), args.sampling.max_new_tokens)
    return load(opened, engine, args)


def reading(engine: config.Engine, args: commands.Answering) -> config.Engine:
    """The engine that holds weights and takes steps as asked."""
    return dataclasses.replace(engine, weights=args.engine.weights, speculative=args.engine.speculative)


def load(opened: Opened, engine: config.Engine, args: commands.Answering) -> Sampler:
    """A sampler with the model's weights.

    Raises:
      ConfigError: drafts are asked for and the model has no module that makes them.
    """
    tokenizer, mesh = opened.tokenizer, sharding.make_mesh(args.mesh)
    engine.check(opened.model)
    sampler = Sampler(opened.model, engine, mesh, end_ids=tokenizer.end_ids, text=tokenizer.decode, seed=args.seed)
    if engine.weights == "same":
        sampler.load(opened.load(sampler.specs, sampler.shardings), copy=False)
    else:  # rounded once, from what a trainer would hold
        specs = decoder.specs(opened.model)
        sampler.load(opened.load(specs, sharding.param_shardings(specs, mesh, sampler.rules)))
    return sampler


def fit(engine: config.Engine, model: config.Model, mesh: jax.sharding.Mesh, cap: int) -> config.Engine:
    """Halves the slots until weights and cache fit into what is free on the fullest device of any process.

    Raises:
      ConfigError: not even one slot fits.
    """
    capacity = memory.available(mesh)
    if capacity is None:
        return engine
    while (need := memory.Sampling.of(model, mesh, engine, cap)).need > capacity:
        if engine.slots == 1:
            raise config.ConfigError(
                f"too large: weights {memory.human(need.weights)} and an answer's cache {memory.human(need.cache)} per device, "
                f"and {memory.human(capacity)} are free; lower --max-new-tokens; {SMALLER}"
            )
        engine = dataclasses.replace(engine, slots=engine.slots // 2)
    return engine


def speed(tokens: int, seconds: float) -> str:
    return f"{tokens:,} tokens in {seconds:.1f} s, {tokens / max(seconds, 1e-9):,.1f} tokens/s, compilation included"
