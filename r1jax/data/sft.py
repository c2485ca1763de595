"""Rows with a ``completion`` become token sequences to train on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from r1jax.config import ConfigError
from r1jax.data.sources import Mixture
from r1jax.data.template import Template
from r1jax.data.tokenizer import Tokenizer

PATIENCE = 1000
"""Rows in a row that may be left out before that is taken for a mistake of the config."""


class Example(NamedTuple):
    tokens: np.ndarray
    """int32[n]: prompt, completion, end token."""
    trained: np.ndarray
    """bool[n]: the completion and the end token."""


def encode(row: dict, template: Template, tokenizer: Tokenizer) -> Example:
    """A row's prompt and completion as tokens: those of the prompt are the ones that sampling begins with.

    ``completion`` is the assistant's whole turn. It does not go through the template, which may delete a thought from it. What
    the template pre-fills of it stands in the prompt and is not trained on.

    Raises:
      ConfigError: the row has no completion, the template leaves out a message of the prompt, the completion does not begin
        with the prefill, its first token begins inside the prompt, it does not survive the tokenizer, or the tokenizer has no
        end token.
    """
    source = f"source {row.get('source')!r}"
    if "completion" not in row:
        raise ConfigError(f"{source}: a row has no 'completion' to train on (prompt {row['prompt']!r:.60})")
    if not tokenizer.end_ids:
        raise ConfigError("the tokenizer has no end token, so that no completion could end; give its directory an eos_token")
    prompt, prefill = template.render(row["prompt"])
    for message in template.messages(row["prompt"]):
        # What the assistant said earlier may lose its thought, as it does in sampling.
        if message["role"] != "assistant" and message["content"].strip() not in prompt:
            raise ConfigError(f"{source}: the template leaves out the {message['role']} message {message['content']!r:.60}")
    if not row["completion"].startswith(prefill):
        raise ConfigError(f"{source}: completion {row['completion']!r:.60} lacks the prefill {prefill!r}")
    completion = row["completion"][len(prefill) :]
    ids, tokens = tokenizer.encode(prompt), tokenizer.encode(prompt + completion)
    if tokens[: len(ids)] != ids:
        raise ConfigError(
            f"{source}: a token reaches from the prompt's end {prompt[-20:]!r} into the completion {completion[:20]!r}, which "
            "sampling cannot do; let the template end, or the completion begin, elsewhere: a space belongs to the word after it"
        )
    if tokenizer.decode(tokens) != tokenizer.decode(ids) + completion:
        raise ConfigError(f"{source}: the tokenizer does not give back the completion {completion!r:.60}")
    tokens.append(tokenizer.end_ids[0])
    return Example(np.array(tokens, np.int32), np.arange(len(tokens)) >= len(ids))


def take(
    mixture: Mixture, cursor: int, count: int, template: Template, tokenizer: Tokenizer, max_tokens: int
) -> tuple[list[Example], int, int]:
    """The next ``count`` examples of at most ``max_tokens`` tokens.

    Args:
      mixture: of rows.
      cursor: index of the first row to look at.

    Returns:
      The examples, the cursor after them, and how many rows were longer and left out.

    Raises:
      ConfigError: ``PATIENCE`` rows one after the other are too long; or as ``encode`` does.
    """
    examples: list[Example] = []
    start, refused = cursor, 0
    while len(examples) < count:
        example = encode(mixture[cursor], template, tokenizer)
        cursor += 1
        if len(example.tokens) <= max_tokens:
            examples.append(example)
            refused = 0
            continue
        refused += 1
        if refused == PATIENCE:
            raise ConfigError(
                f"{PATIENCE} rows one after the other are longer than {max_tokens} tokens, the last {len(example.tokens)}; "
                "raise sequence_length"
            )
    return examples, cursor, cursor - start - count
