"""r1jax's models in lm-evaluation-harness (extra ``lm-eval``):

    import lm_eval
    from r1jax.eval.harness import Model

    found = lm_eval.simple_evaluate(model=Model("runs/sft"), tasks=["hellaswag"])

Texts are read as the harness writes them, after the tokenizer's own prefix; with ``apply_chat_template=True`` the model's chat
template is put around the messages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from r1jax import config
from r1jax.config import ConfigError, commands
from r1jax.eval import score
from r1jax.eval.loaded import SLOTS, find_template, load, open_model
from r1jax.eval.tasks import room
from r1jax.loading import Opened
from r1jax.rollout import Sampler

try:
    from lm_eval.api.model import LM
except ModuleNotFoundError as e:
    if e.name != "lm_eval":
        raise
    raise ConfigError("the package lm-eval is not installed; pip install 'r1jax[lm-eval]'") from e

LENGTH = 2048
"""Tokens of context where neither the model nor its user says how many."""
SHORTEST = 64
"""Room for prompts at least."""
NEW_TOKENS = 256
"""The most of an answer where the task does not say."""
KNOWN = ("until", "max_gen_toks", "max_tokens", "max_new_tokens", "do_sample", "temperature", "top_p")
"""Of what a task may ask of sampling. ``top_k`` and penalties are refused where they would change something."""
IDLE = {"top_k": (0, 1, -1, None), "num_beams": (1, None), "repetition_penalty": (1, 1.0, None)}


class Model(LM):
    """A model by its name: a run directory, ``RUN@STEP``, a Hugging Face directory or Hub id, a GGUF file.

    Args:
      model: its name.
      max_length: tokens that a text and its answer may have; longer texts lose their beginning. None is what the model was made
        for, else 2048.
      slots, dtype, matmul_dtype, mesh, seed: as the options of ``r1jax eval``; ``mesh`` is axis -> devices.

    Raises:
      ConfigError: there is no such model, or an option cannot be.
    """

    def __init__(
        self,
        model: str,
        *,
        max_length: int | None = None,
        slots: int = SLOTS,
        dtype: str | None = None,
        matmul_dtype: str | None = None,
        mesh: dict[str, int] | None = None,
        seed: int = 0,
        **_: Any,
    ):
        super().__init__()
        where = config.Mesh(**(mesh or {}))
        self.args = commands.Answering(
            model=model, slots=slots, dtype=dtype, matmul_dtype=matmul_dtype, mesh=where, seed=seed
        )
        self.opened: Opened = open_model(self.args)
        self.max_length = max_length or room(self.opened) or LENGTH
        self._loaded: score.Scorer | Sampler | None = None

    # -- Log-probabilities

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Of each (context, continuation) the log-probability of the continuation, and whether each of its tokens is the most
        probable one."""
        rows, counts = [], []
        for context, continuation in (request.args for request in requests):
            begun, whole = self._split(context, continuation)
            rows.append(np.array(whole[-(self.max_length + 1) :], np.int32))
            counts.append(min(len(whole) - begun, self.max_length))
        found = zip(*self._score(rows), counts, strict=True)
        return [(float(values[-n:].sum(dtype=float)), bool(greedy[-n:].all())) for values, greedy, n in found]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Of each (text,) the log-probability of all its tokens. One of more than ``max_length`` is read in windows, each token
        once, the last window with as much context as fits."""
        found, rows, parts = [0.0] * len(requests), [], []
        for i, (text,) in enumerate(request.args for request in requests):
            for row, new in windows(self._begin() + self._tokens(text), self.max_length):
                rows.append(row)
                parts.append((i, new))
        for values, (i, new) in zip(self._score(rows)[0], parts, strict=True):
            found[i] += float(values[len(values) - new :].sum(dtype=float))
        return found

    def _score(self, rows: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Of each row float32[n - 1] log-probs and bool[n - 1]."""
        if not isinstance(self._loaded, score.Scorer):
            self._loaded = None  # or there would be two sets of weights
            self._loaded = score.Scorer(self.opened, self.args.mesh, greedy=True)
        return self._loaded(rows)

    def _split(self, context: str, continuation: str) -> tuple[int, list[int]]:
        """(tokens of the context, all tokens). White space at the end of the context is the beginning of the continuation, as
        the harness's own models have it."""
        stripped = context.rstrip()
        if not stripped:
            return len(self._begin()), self._begin() + self._tokens(context + continuation)
        whole = self._read(context + continuation)
        return min(len(self._read(stripped)), len(whole) - 1), whole

    def _tokens(self, text: str) -> list[int]:
        return self.opened.tokenizer.encode(text)

    def _read(self, text: str) -> list[int]:
        """With the tokenizer's prefix, unless the text begins with it, as chat templates write it."""
        return score.encode(self.opened.tokenizer, text).tolist()

    def _begin(self) -> list[int]:
        """What stands before a text whose first token is scored too: the prefix, else an end token."""
        return self._tokens(self.opened.tokenizer.prefix) or [self.opened.tokenizer.end_ids[0]]

    # -- Texts

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answer to each (context, sampling), greedy unless the task samples, without the string that ended it."""
        found = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        for asked, members in groups.items():
            sampling = self._sampling(json.loads(asked))
            keep = self.max_length - sampling.max_new_tokens
            prompts = [self._read(requests[i].args[0])[-keep:] or self._begin() for i in members]
            t = self._sampler(max(map(len, prompts))).generate(prompts, sampling, ids=members)
            for i, row, start, end in zip(members, t.tokens, t.prompt_length, t.length, strict=True):
                found[i] = before(self._text(row[start:end].tolist()), sampling.stop)
        return found

    def _text(self, ids: list[int]) -> str:
        tokenizer = self.opened.tokenizer
        return tokenizer.decode(ids[:-1] if ids and ids[-1] in tokenizer.end_ids else ids)

    def _sampling(self, asked: dict[str, Any]) -> config.Sampling:
        """
        Raises:
          ConfigError: the task asks for what the sampler has not.
        """
        for name, value in asked.items():
            if name not in KNOWN and value not in IDLE.get(name, ()):
                raise ConfigError(f"the task samples with {name}={value!r}, which r1jax does not; it knows {', '.join(KNOWN)}")
        until = asked.get("until") or ()
        stop = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
        tokens = next((asked[name] for name in ("max_gen_toks", "max_new_tokens", "max_tokens") if name in asked), NEW_TOKENS)
        temperature = float(asked.get("temperature", 1.0 if asked.get("do_sample") else 0.0))
        if asked.get("do_sample") is False:
            temperature = 0.0
        top_p = float(asked.get("top_p", 1.0))
        return config.Sampling(temperature, top_p, min(int(tokens), self.max_length - 1), stop)

    def _sampler(self, longest: int) -> Sampler:
        """One whose prompts may be so long: made anew where the last one's may not."""
        if not isinstance(self._loaded, Sampler) or self._loaded.engine.max_prompt_tokens < longest:
            self._loaded = None
            engine = config.Engine(slots=self.args.slots, max_prompt_tokens=max(SHORTEST, 1 << (longest - 1).bit_length()))
            self._loaded = load(self.opened, engine, self.args)
        return self._loaded

    # -- Chat templates

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The messages as the model's template writes them.

        Raises:
          ConfigError: the last message is to be gone on with, which templates of r1jax do not.
        """
        if not add_generation_prompt:
            raise ConfigError("r1jax writes prompts that end where the assistant begins; ask without a pre-filled answer")
        return find_template(self.opened, "auto").render(chat_history).text

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return find_template(self.opened, "auto").source

    @property
    def tokenizer_name(self) -> str:
        return self.opened.name.replace("/", "__")


def windows(tokens: Sequence[int], length: int) -> Iterator[tuple[np.ndarray, int]]:
    """(int32[n] with n <= length + 1, how many of its last tokens are new): each token but the first is new once. The last
    one of a row is only predicted."""
    row = np.array(tokens, np.int32)
    yield row[: length + 1], min(len(row), length + 1) - 1
    for end in range(length + 1, len(row), length):
        last = min(end + length, len(row))
        yield row[last - length - 1 : last], last - end


def before(text: str, stop: Sequence[str]) -> str:
    """The text up to the first of the strings."""
    return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]
