"""What hostile answers cost: ``python -m r1jax.bench.reward_throughput [--answers 2000]``.

Scores batches of answers with the reward ``accuracy``, in turn without and with 1 % hostile ones among them, and prints the
medians of answers per second and their ratio. One honest answer in 20 is a formula, which math-verify compares; one
in seven is wrong.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Sequence

from r1jax.config import Workers
from r1jax.rewards import Item, Pool

HOSTILE_SHARE = 0.01
ROUNDS = 5
"""Batches of each sort."""
GOLD = r"\sqrt{7}+x"
"""Of the hostile answers: no plain number, so that they reach whatever compares formulas."""
HOSTILE = {
    "a tower of powers": "9^9^9^9",
    "a tower in braces": "9^{9^{9^{9}}}",
    "a tower in Python": "9**9**9**9",
    "a tower in brackets": "((9^9)^9)^{999999}",
    "a tower of a variable": "x^{x^{x^{x^{x}}}}",
    "a tower of e": r"e^{e^{e^{e^{10}}}}",
    "a tower of exp": r"\exp(\exp(\exp(\exp(5))))",
    "a power of a power": "(9^{99999})^{99999}",
    "a huge exponent": "10^{1000000000}",
    "a huge negative exponent": "10^{-1000000000}",
    "a huge exponent in a number": "1e999999999",
    "a factorial": "(10^9)!",
    "a factorial of a factorial": "((9!)!)!",
    "a factorial of a fraction": r"\frac{10^9}{1}!",
    "a factorial in a power": "9^{999!}",
    "a binomial": r"\binom{1000000000}{500000000}",
    "a gamma function": r"\Gamma(10^{9})",
    "2000 parentheses": "(" * 2000 + "1" + ")" * 2000,
    "2000 open parentheses": "(" * 2000,
    "300 braces": "{" * 300 + "1" + "}" * 300,
    "nested fractions": r"\frac{1}{" * 200 + "2" + "}" * 200,
    "nested roots": r"\sqrt{" * 200 + "2" + "}" * 200,
    "a giant integer": "7" * 100_000,
    "a giant decimal": "0." + "3" * 5000,
    "a sum": r"\sum_{i=1}^{10^{9}} \frac{1}{i^2}",
    "a product": r"\prod_{i=1}^{1000000} i",
    "an integral": r"\int_0^1 e^{e^{x^x}} dx",
    "a limit": r"\lim_{n\to\infty} \left(1+\frac{1}{n}\right)^n",
    "a huge matrix": r"\begin{pmatrix}" + r"\\".join(["&".join("1" * 60)] * 60) + r"\end{pmatrix}",
    "a power of a matrix": r"\begin{pmatrix}1&1\\1&0\end{pmatrix}^{1000000000}",
    "an equation chain": "x=y=" * 200 + "1",
    "signs": "-" * 5000 + "1",
    "a product of sums": "".join(f"(x+{i})" for i in range(60)),
    "a root of a giant": r"\sqrt[1000000]{" + "9" * 300 + "}",
    "a remainder": r"7^{7^{7^{7}}} \bmod 1000",
    "trigonometry of a giant": r"\sin(10^{9999})",
    "a logarithm of a giant": r"\log(\log(\log(10^{9999})))",
    "backtracking": "a " * 50_000 + "!",
    "backtracking on separators": "1," * 50_000 + "x",
    "backtracking on dots": ". " * 50_000,
    "backtracking on spaces": "1" + " " * 100_000 + "x",
    "backtracking on text": r"\text{" * 20_000,
    "open boxes": r"\boxed{" * 50_000,
    "tags": "<answer>" * 20_000,
    "a definition loop": r"\def\a{\a\a}\a",
    "a csname loop": r"\newcommand{\x}{\x\x}\x\x\x\x\x",
    "long garbage": "q@#~`^_&%" * 20_000,
    "null bytes": "4\x00" * 1000,
    "lone surrogates": "\ud800\udfff" * 1000,
    "combining marks": "4" + "\u0301" * 50_000,
    "direction marks": "\u202e\u200b4" * 1000,
    "code": "__import__('os').system('sleep 60')",
    "code in brackets": "().__class__.__bases__[0].__subclasses__()",
    "zeta": r"\zeta(10^9) + \Gamma(99999.5)",
    "a long list": ",".join(str(i) for i in range(2000)),
    "a list of symbolic": ",".join(f"\\sqrt{{{i}}}" for i in range(2, 60)),
    "inverse trig": r"\arctan(\arctan(\arctan(\tan(\tan(99999)))))",
    "decimal exponent": "9.99^{9999.99}",
    "a fraction exponent": r"2^{\frac{999999999}{7}}",
    "x to itself": "(x+1)^{x^{99}}",
    "abs tower": "|9|^{|9|^{|9|}}",
    "mod": r"999999999999^{9999} \bmod 7",
    "inequality system": "<".join("abcdefghijklmnopqrstuvwxyz" * 3),
    "determinant": r"\det\begin{pmatrix}" + r"\\".join(["&".join("abcdefgh")] * 8) + r"\end{pmatrix}",
}
"""One answer of each kind, which takes for ever, all of the memory or a deep stack where nothing is in its way."""


def honest(i: int) -> tuple[str, str, float]:
    """The i-th answer, the row's answer, and what the reward gives."""
    wrong = i % 7 == 3
    n = i + wrong
    if i % 20 == 10:
        return rf"\boxed{{\frac{{{n}}}{{\sqrt{{2}}}}+x}}", rf"x+\frac{{{i}\sqrt{{2}}}}{{2}}", float(not wrong)
    forms = (f"<answer>{n:,}</answer>", rf"\boxed{{{n}.0}}", f"$\\frac{{{2 * n}}}{{2}}$", f"The sum.\n#### {n} apples")
    return forms[i % 4], str(i), float(not wrong)


def items(count: int, hostile: Sequence[str]) -> tuple[list[Item], list[float | None]]:
    """``count`` answers with the hostile ones spread evenly among them, and the value of each; None for a hostile one."""
    made, values = [], []
    places = {round((k + 0.5) * count / len(hostile)): answer for k, answer in enumerate(hostile)}
    numbers = itertools.count()
    for i in range(count):
        answer, gold, value = (places[i], GOLD, None) if i in places else honest(next(numbers))
        made.append(Item("", f"<think>So be it.</think> {answer}", {"answer": gold}, ("accuracy",)))
        values.append(value)
    return made, values


def main(arguments: Sequence[str]) -> None:
    match arguments:
        case []:
            answers = 2000
        case ["--answers", number]:
            answers = int(number)
        case _:
            raise SystemExit(__doc__.partition("\n")[0])
    kinds = list(HOSTILE.values())
    each = max(1, round(answers * HOSTILE_SHARE))
    speeds: dict[bool, list[float]] = {False: [], True: []}
    statuses: dict[str, int] = {}
    with Pool(Workers(count=2)) as pool:
        pool.score(items(200, [])[0])  # the workers have imported what they need
        for turn in range(2 * ROUNDS):
            hostile = [kinds[((turn // 2) * each + k) % len(kinds)] for k in range(each)] if turn % 2 else []
            batch, values = items(answers, hostile)
            start = time.perf_counter()
            scores = [score["accuracy"] for score in pool.score(batch)]
            speeds[bool(hostile)].append(len(batch) / (time.perf_counter() - start))
            wrong = sum(score.value != (value or 0.0) for score, value in zip(scores, values, strict=True))
            if wrong:
                raise SystemExit(f"{wrong} of {len(batch)} answers scored wrong")
            for score, value in zip(scores, values, strict=True):
                if value is None:
                    statuses[score.status] = statuses.get(score.status, 0) + 1
    without, among = (statistics.median(speeds[kind]) for kind in (False, True))
    print(f"without hostile answers      {without:8.0f} answers/s   ({_spread(speeds[False])})")
    print(f"with {each} of {answers} hostile       {among:8.0f} answers/s   ({_spread(speeds[True])})")
    print(f"ratio of the medians         {among / without:8.2f}   (0.70 or more is wanted)")
    print("the hostile ones ended as    " + ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items())))


def _spread(speeds: Sequence[float]) -> str:
    return f"{len(speeds)} batches, {min(speeds):.0f} to {max(speeds):.0f}"


if __name__ == "__main__":
    main(sys.argv[1:])
