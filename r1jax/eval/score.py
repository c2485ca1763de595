"""``r1jax score``: log-probabilities of given tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import config, loading, sharding
from r1jax.bench import peers
from r1jax.config import ConfigError, commands
from r1jax.data import jsonl, output
from r1jax.data.tokenizer import Tokenizer
from r1jax.eval.loaded import SMALLER, open_model
from r1jax.models import decoder
from r1jax.models.logprobs import most_probable, token_logprobs
from r1jax.plan.shortage import out_of_memory_is

PADDING = -1
PASS_TOKENS = 8192  # tokens in one forward pass, padding included, unless a row alone has more
ROUND_TO = 64  # row lengths


@out_of_memory_is(SMALLER)
def score(args: commands.Score) -> int:
    """Writes ``logprobs``, ``lengths``, and for texts ``tokens`` (see ``commands.Score``) to ``args.out``, and prints what was
    written and how far it is from what ``args.against`` finds.

    Raises:
      ConfigError: the user's mistakes.
    """
    if args.out is not None:
        output.check_output(args.out)
    if args.tokens.suffix == ".npy":
        rows, width = read_tokens(args.tokens)
        opened = open_model(args)
    else:
        texts = read_texts(args.tokens)
        opened = open_model(args)
        rows = [encode(opened.tokenizer, text) for text in texts]
        width = max(map(len, rows))
    check_range(rows, opened.model.vocab_size, args.tokens)

    main = jax.process_index() == 0
    # theirs first: what they refuse is told before our weights are loaded
    theirs = peers.hf_logprobs(args.model, rows, args.temperature) if main and args.against == "hf" else None
    ours = logprobs(opened, rows, args.mesh, args.temperature)
    if main and args.out is not None:
        found = {"logprobs": pad(ours, max(width - 1, 0), 0), "lengths": np.array([len(row) for row in rows], np.int32)}
        if args.tokens.suffix != ".npy":
            found["tokens"] = pad(rows, width, PADDING)
        with output.replacing(args.out) as part, open(part, "wb") as file:
            np.savez(file, **found)
        print(f"{args.out}: {written(ours, sum(map(len, rows)))}")
    if theirs is not None:
        print(difference(ours, theirs))
    return 0


def written(ours: Sequence[np.ndarray], tokens: int) -> str:
    """A line about log-probs, float32[n] per row, of so many tokens."""
    rows, values = len(ours), np.concatenate(ours)
    mean = f"mean log-prob {values.mean(dtype=float):.4g}" if len(values) else "no log-prob, for no row has two"
    return f"{rows:,} {'row' if rows == 1 else 'rows'}, {tokens:,} {'token' if tokens == 1 else 'tokens'}, {mean}"


def difference(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> str:
    """A line about two sets of log-probs, float32[n] per row.

    Raises:
      ConfigError: they are empty.
    """
    gaps = [np.abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    count = sum(map(len, gaps))
    if not count:
        raise ConfigError("no row has two tokens, so there is nothing to compare")
    row = int(np.argmax([gap.max(initial=-1) for gap in gaps]))
    at, mean = int(gaps[row].argmax()), sum(gap.sum(dtype=float) for gap in gaps) / count
    return (
        f"{count:,} log-probs against transformers: largest difference {gaps[row][at]:.2e} at row {row}, position {at} "
        f"(ours {ours[row][at]:.6f}, theirs {theirs[row][at]:.6f}), mean {mean:.2e}"
    )


def logprobs(opened: loading.Opened, rows: Sequence[np.ndarray], mesh: config.Mesh, temperature: float) -> list[np.ndarray]:
    """Log-probability of each token of each row given those before it.

    Args:
      rows: int32[n] each, n >= 0.

    Returns:
      float32[max(n - 1, 0)] per row.
    """
    return Scorer(opened, mesh, temperature)(rows)[0]


class Scorer:
    """A model's weights and its forward pass.

    Args:
      greedy: tell of each token whether it is the most probable one too, which takes the logits once more.
    """

    def __init__(self, opened: loading.Opened, mesh: config.Mesh, temperature: float = 1.0, *, greedy: bool = False):
        model, self._devices = opened.model, sharding.make_mesh(mesh)
        self._table = sharding.rules("train", model.attention.kind)
        specs = decoder.specs(model)
        self._params = opened.load(specs, sharding.param_shardings(specs, self._devices, self._table))
        self._forward = jax.jit(partial(_forward, temperature=float(temperature), model=model, greedy=greedy))

    def __call__(self, rows: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """
        Args:
          rows: int32[n] each, n >= 0.

        Returns:
          Per row float32[max(n - 1, 0)], the log-probability of each token given those before it, and bool of the same shape,
          whether it is the most probable one; all false if that was not asked for.
        """
        values, first = ([np.zeros(max(len(row) - 1, 0), kind) for row in rows] for kind in (np.float32, bool))
        devices, table = self._devices, self._table
        with sharding.using(devices, table):
            for chosen, height, width in passes([len(row) for row in rows], sharding.batch_ways(devices, table)):
                tokens, lengths = np.zeros((height, width), np.int32), np.zeros(height, np.int32)
                for i, row in enumerate(chosen):
                    tokens[i, : len(rows[row])], lengths[i] = rows[row], len(rows[row])
                tokens = sharding.put(tokens, devices, table, "batch", "sequence")
                lengths = sharding.put(lengths, devices, table, "batch")
                found = [sharding.fetch(x) for x in self._forward(self._params, tokens, lengths)]
                for i, row in enumerate(chosen):
                    values[row], first[row] = (x[i, : len(values[row])] for x in found)
        return values, first


def _forward(params, tokens, lengths, *, temperature: float, model: config.Model, greedy: bool) -> tuple[jax.Array, jax.Array]:
    """float32[B, T] and bool[B, T]: at t the log-probability of token t + 1, and whether it is the most probable one. What
    stands at and past a row's last token means nothing."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    segments = (positions < lengths[:, None]).astype(jnp.int32)
    hidden, _, _ = decoder.forward(params, tokens, positions, segments, model=model)
    targets = jnp.roll(tokens, -1, axis=1)
    kernel = decoder.head_kernel(params)
    values = token_logprobs(hidden, kernel, targets, temperature=temperature, dtype=model.head_dtype)[0]
    best = most_probable(hidden, kernel, dtype=model.head_dtype) if greedy else targets - 1
    return values, best == targets


def passes(lengths: Sequence[int], ways: int) -> Iterator[tuple[list[int], int, int]]:
    """The rows of each forward pass, and its shape: (rows, height, width). Rows of like length go together, so that few shapes
    are compiled and little is padded. Rows of fewer than 2 tokens have nothing to score and are left out.

    Args:
      lengths: of every row.
      ways: devices that share the rows; heights are multiples of it.
    """
    longest = -(-max(lengths, default=0) // ROUND_TO) * ROUND_TO
    groups: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        if length > 1:
            doubled = ROUND_TO << max(0, (length - 1) // ROUND_TO).bit_length()
            groups.setdefault(min(doubled, longest), []).append(row)
    for width, rows in sorted(groups.items()):
        height = min(max(1, PASS_TOKENS // (width * ways)), -(-len(rows) // ways)) * ways
        for first in range(0, len(rows), height):
            yield rows[first : first + height], height, width


def encode(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """int32[n], with the tokenizer's prefix unless the text begins with it."""
    prefix = "" if text.startswith(tokenizer.prefix) else tokenizer.prefix
    return np.array(tokenizer.encode(prefix + text), np.int32)


def pad(rows: Sequence[np.ndarray], width: int, value: int) -> np.ndarray:
    """[B, width] of the rows' dtype, filled up with ``value`` on the right."""
    out = np.full((len(rows), width), value, rows[0].dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def read_tokens(path: Path) -> tuple[list[np.ndarray], int]:
    """The rows of a .npy file without their padding, and the width T of the array.

    Raises:
      ConfigError: it is not an array int[B, T] with B and T at least 1, padded with -1 on the right only.
    """
    try:
        table = np.load(path.expanduser(), allow_pickle=False)
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror or e}") from e
    except (ValueError, EOFError) as e:
        raise ConfigError(f"{path} is not a .npy file of numbers: {e}") from e
    if not isinstance(table, np.ndarray) or not np.issubdtype(table.dtype, np.integer) or table.ndim != 2 or not table.size:
        what = f"{table.dtype} of shape {table.shape}" if isinstance(table, np.ndarray) else "an archive of arrays"
        raise ConfigError(f"{path} holds {what}; give int32 [B, T], padded on the right with {PADDING}")
    lengths = (table != PADDING).sum(axis=1)
    for i, length in enumerate(lengths):
        if (table[i, :length] == PADDING).any():
            at = int((table[i] == PADDING).argmax())
            raise ConfigError(f"{path}: row {i} has padding ({PADDING}) at {at} and a token after it; pad on the right only")
    return [row[:length] for row, length in zip(table, lengths, strict=True)], table.shape[1]


def read_texts(path: Path) -> list[str]:
    """The texts of a JSONL file.

    Raises:
      ConfigError: the file cannot be read, or a row has no text; names file and line.
    """
    found = jsonl.read(path)
    for where, row in found:
        if not isinstance(row.get("text"), str):
            raise ConfigError(f"{where}: a row must hold 'text', a string (it has {', '.join(map(repr, row)) or 'no fields'})")
    return [row["text"] for _, row in found]


def check_range(rows: Sequence[np.ndarray], vocab: int, path: Path) -> None:
    """
    Raises:
      ConfigError: a token is not in 0..vocab-1.
    """
    for i, row in enumerate(rows):
        wrong = np.flatnonzero((row < 0) | (row >= vocab))
        if wrong.size:
            at = int(wrong[0])
            raise ConfigError(f"{path}: row {i} has token {row[at]} at {at}; the model knows 0..{vocab - 1}")
