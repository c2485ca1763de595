"""A model that answers: its weights in a sampler sized for the questions, its template as asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from r1jax import config, sharding
from r1jax.data.template import Template
from r1jax.eval.answers import Question
from r1jax.loading import Opened
from r1jax.rollout import Sampler

SLOTS = 64  # rows decoded together at most
ROUND_TO = 8  # prompt lengths


def find_template(opened: Opened, name: str) -> Template:
    """The template called ``name``; ``auto`` is the one the model was trained with."""
    text = opened.text if name == "auto" else dataclasses.replace(opened.text, template=name)
    return Template(text, opened.tokenizer)


def load_sampler(opened: Opened, asked: Sequence[Question], samples: int, mesh: config.Mesh, seed: int) -> Sampler:
    """A sampler with the model's weights and room for ``samples`` answers to each question."""
    engine = config.Engine(
        slots=min(SLOTS, len(asked) * samples),
        max_prompt_tokens=-(-max(len(q.ids) for q in asked) // ROUND_TO) * ROUND_TO or ROUND_TO,
    )
    tokenizer = opened.tokenizer
    sampler = Sampler(
        opened.model, engine, sharding.make_mesh(mesh), end_ids=tokenizer.end_ids, text=tokenizer.decode, seed=seed
    )
    sampler.load(opened.load(sampler.shardings))
    return sampler


def speed(tokens: int, seconds: float) -> str:
    return f"{tokens:,} tokens in {seconds:.1f} s, {tokens / max(seconds, 1e-9):,.1f} tokens/s, compilation included"
