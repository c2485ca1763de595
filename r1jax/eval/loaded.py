"""A model that answers: opened as asked, its weights in a sampler, its template."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from r1jax import config, loading, sharding
from r1jax.config import commands
from r1jax.data.template import Template
from r1jax.eval.answers import Question
from r1jax.loading import Opened
from r1jax.rollout import Sampler

SLOTS = 64  # rows decoded together at most
ROUND_TO = 8  # prompt lengths


def open_model(args: commands.Computing) -> Opened:
    """``args.model`` with its matrix products as asked.

    Raises:
      ConfigError: there is no such model.
    """
    opened = loading.open_model(args.model)
    if args.matmul_dtype is None:
        return opened
    return dataclasses.replace(opened, model=dataclasses.replace(opened.model, matmul_dtype=args.matmul_dtype))


def find_template(opened: Opened, name: str, system: str | None = None) -> Template:
    """The template called ``name``; ``auto`` is the one the model was trained with, as is its system message where ``system``
    is None."""
    chosen = {"template": None if name == "auto" else name, "system": system}
    text = dataclasses.replace(opened.text, **{key: value for key, value in chosen.items() if value is not None})
    return Template(text, opened.tokenizer)


def engine_for(asked: Sequence[Question], samples: int) -> config.Engine:
    """Room for ``samples`` answers to each question."""
    return config.Engine(
        slots=min(SLOTS, len(asked) * samples),
        max_prompt_tokens=-(-max(len(q.ids) for q in asked) // ROUND_TO) * ROUND_TO or ROUND_TO,
    )


def load_sampler(opened: Opened, engine: config.Engine, mesh: config.Mesh, seed: int) -> Sampler:
    """A sampler with the model's weights."""
    tokenizer = opened.tokenizer
    sampler = Sampler(
        opened.model, engine, sharding.make_mesh(mesh), end_ids=tokenizer.end_ids, text=tokenizer.decode, seed=seed
    )
    sampler.load(opened.load(sampler.specs, sampler.shardings), copy=False)
    return sampler


def speed(tokens: int, seconds: float) -> str:
    return f"{tokens:,} tokens in {seconds:.1f} s, {tokens / max(seconds, 1e-9):,.1f} tokens/s, compilation included"
