"""``r1jax data decontaminate``: rows that share a run of words with a benchmark.

R1 matched 10-grams of evaluation questions and solutions against its training data (arXiv 2501.12948v2, D.1). DeepSeekMath, of
the same company, matched benchmark texts of 3 to 9 words as a whole (arXiv 2402.03300, 2.1). Neither says more. Here

- a word is what ``r1jax.data.words`` says, and 16 characters of Chinese count as 10 words;
- every text of a benchmark's row that has 10 words counts: question, solution, options. A shorter one counts only if it is the
  question (the answer 42 stands everywhere), then as a whole and with its signs, so that 12 + 34 is not 12 - 34. One of fewer
  than 3 words must be all of a text;
- a run that stands in more than ``COMMON`` different questions of the benchmarks is their way of asking, and no match.

A paraphrase or a translation shares no run of words and is not found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from r1jax.config import data_commands
from r1jax.data import cleaning, words
from r1jax.data.words import RUNS, SPACED, WORD, WORD_OR_SIGN

COMMON = 10
FEWEST = 3
"""Words below which a question matches only a text that is nothing else."""
_TOLD = 5  # of the benchmark's rows with the most matches


def decontaminate(args: data_commands.DataDecontaminate) -> int:
    """Writes the rows of ``args.data`` that match no row of ``args.against``, a line per match, and the counts.

    Raises:
      ConfigError: the user's mistakes.
    """
    with cleaning.open_output(args, prompts=False) as out:
        benchmarks = [cleaning.open_rows(name, None) for name in args.against]
        of = [(number, *placed) for number, rows in enumerate(benchmarks) for placed in rows]
        index = Index((row for _, _, row in of), args.words)
        matched: Counter[int] = Counter()
        for where, row in out:
            found = index.matches(row)
            for m in found:
                out.report({"row": where, "field": m.field, "benchmark": of[m.row][1], "shared": m.shared})
            if not found:
                out.keep(row)
            matched.update(m.row for m in found)
        counts = [Counter(number for number, *_ in part) for part in (of, [of[row] for row in matched])]
        told = [{"rows": counts[0][n], "matched": counts[1][n]} for n in range(len(benchmarks))]
        about = [cleaning.identity(rows) | n for rows, n in zip(benchmarks, told, strict=True)]
        out.summary = {"against": about, "common_runs": index.common}
        out.notes = [
            *(f"{name}: {n['matched']:,} of {n['rows']:,} rows matched" for name, n in zip(args.against, told, strict=True)),
            *(f"  {of[row][1]} by {times:,} rows" for row, times in matched.most_common(_TOLD)),
            f"{index.common:,} runs of words stand in more than {COMMON} questions and count as no match",
        ]
    return 0


class Match(NamedTuple):
    row: int
    """Number of the benchmark's row, from 0."""
    field: str
    """Where in the row that was looked at."""
    shared: str
    """The longest run of words that they share, as normalised."""


class Index:
    """What of benchmarks is looked for."""

    def __init__(self, rows: Iterable[dict], size: int = 10):
        """
        Args:
          rows: each with ``prompt``.
          size: words in a row that make a match.
        """
        self.size = size
        self._short: list[tuple[int, str]] = []
        self._whole: dict[str, list[int]] = {}
        asked: dict[str, int] = {}
        long, starts_of_short = [(np.empty(0, np.uint64), np.empty(0, np.int64))], []
        questions = []
        for number, row in enumerate(rows):
            questions.append(asked.setdefault(words.normal(words.prompt_text(row)), len(asked)))
            texts = _questions(row["prompt"])
            for _, text in words.texts(row):
                runs = _Text(text).runs(size)
                if len(runs):
                    long.append((runs, np.full(len(runs), number)))
                elif text in texts:
                    short = _Text(text)
                    starts = short.runs(FEWEST)
                    if len(starts):
                        starts_of_short.append(starts[0])
                        self._short.append((number, short.signs()))
                    elif short.words:
                        self._whole.setdefault(short.signs(), []).append(number)
        hashes, owners = (np.concatenate(part) for part in zip(*long, strict=True))
        self._long, self.common = _table_of_rare(hashes, owners, np.array(questions, np.int64))
        self._starts = _Table(np.array(starts_of_short, np.uint64), np.arange(len(starts_of_short)))

    def matches(self, row: dict) -> list[Match]:
        """A match for each row of the benchmarks that shares a run of words with any text of ``row``, in their order."""
        best: dict[int, Match] = {}
        for field, content in words.texts(row):
            text = _Text(content)
            found = self._long_runs(text) if self.size * SPACED <= text.most else []
            found += self._short_ones(text)
            for number, shared in found:
                if number not in best or len(shared) > len(best[number].shared):
                    best[number] = Match(number, field, shared)
        return [best[number] for number in sorted(best)]

    def _long_runs(self, text: _Text) -> list[tuple[int, str]]:
        places, owners = self._long.find(text.runs(self.size))
        if not len(places):
            return []
        starts, ends = words.runs(text.words, self.size, text.ascii)
        spans = [match.span() for match in WORD.finditer(text.normal)]
        found = []
        for owner in np.unique(owners):
            at = places[owners == owner]
            pieces = np.split(at, np.flatnonzero(np.diff(at) != 1) + 1)
            longest = max(pieces, key=len)
            first, last = spans[starts[longest[0]]], spans[ends[longest[-1]] - 1]
            found.append((int(owner), text.normal[first[0] : last[1]]))
        return found

    def _short_ones(self, text: _Text) -> list[tuple[int, str]]:
        found = []
        if self._short:
            _, numbers = self._starts.find(text.runs(FEWEST))
            signs = f" {text.signs()} " if len(numbers) else ""
            found += [self._short[i] for i in np.unique(numbers) if f" {self._short[i][1]} " in signs]
        if self._whole and text.most < FEWEST * SPACED:
            signs = text.signs()
            found += [(number, signs) for number in self._whole.get(signs, ())]
        return found


class _Text:
    """A text as it is looked at."""

    def __init__(self, content: str):
        self.normal = words.normal(content)
        self.ascii = self.normal.isascii()
        self.words = WORD.findall(self.normal)
        self.most = SPACED * len(self.words)
        """What its words weigh, or more."""
        self._numbers = words.numbers(self.words)

    def runs(self, size: int) -> np.ndarray:
        """uint64[M]: the hashes of the runs of ``size`` words."""
        if self.most < SPACED * size:
            return self._numbers[:0]
        return RUNS.hash(self._numbers, *words.runs(self.words, size, self.ascii))

    def signs(self) -> str:
        """Words and signs, a space between any two."""
        return " ".join(WORD_OR_SIGN.findall(self.normal))


class _Table:
    """Hashes and whose they are. Nearly all that is not in it is told by one look into a table of bits."""

    def __init__(self, hashes: np.ndarray, owners: np.ndarray):
        order = np.lexsort((owners, hashes))
        self.hashes, self.owners = hashes[order], owners[order]
        bits = min(max(16, len(hashes).bit_length() + 6), 26)
        self.shift = np.uint64(64 - bits)
        self.seen = np.zeros(1 << bits, bool)
        self.seen[hashes >> self.shift] = True

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(places, owners), int64[K] each: which of ``hashes`` are in the table, once per owner, in the order of places."""
        places = self.seen[hashes >> self.shift].nonzero()[0]
        wanted = hashes[places]
        first = self.hashes.searchsorted(wanted)
        count = self.hashes.searchsorted(wanted, "right") - first
        if not count.any():
            return places[:0], places[:0]
        owners = [self.owners[at : at + n] for at, n in zip(first, count, strict=True)]
        return places.repeat(count), np.concatenate(owners)


def _table_of_rare(hashes: np.ndarray, owners: np.ndarray, questions: np.ndarray) -> tuple[_Table, int]:
    """The runs that at most ``COMMON`` questions have, and how many others there are.

    Args:
      hashes: uint64[N].
      owners: int64[N], the row of each.
      questions: int64[rows], the question that each row asks.
    """
    order = np.lexsort((owners, questions[owners], hashes))
    hashes, owners = hashes[order], owners[order]
    other_run = np.diff(hashes, prepend=~hashes[:1]) != 0
    other_question = other_run | (np.diff(questions[owners], prepend=-1) != 0)
    run = np.cumsum(other_run) - 1
    common = np.bincount(run[other_question]) > COMMON
    once = other_run | (np.diff(owners, prepend=-1) != 0)
    chosen = once & ~common[run]
    return _Table(hashes[chosen], owners[chosen]), int(common.sum())


def _questions(prompt: str | list[dict]) -> list[str]:
    """What the prompt asks: all of it, or what its users say."""
    return [prompt] if isinstance(prompt, str) else [m["content"] for m in prompt if m["role"] == "user"]
