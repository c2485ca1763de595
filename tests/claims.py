"""What the paper claims of its stages, on the tiny pipeline: the runs, and the table that README.md here holds.

    for seed in 0 1 2; do r1jax train tests/claims.py --seed $seed --run-dir runs/claims-$seed; done
    python tests/claims.py runs/claims-0 runs/claims-1 runs/claims-2

The config is ``configs/r1_pipeline_tiny.py`` and what it is compared with: RL-1 without the language reward, and the student
trained by RL, at three learning rates, in place of distillation. Every figure is of the 512 held-out problems at temperature 1.
Its standard error is taken from the problems alone, sqrt(p (1 - p) / 512), as if all answers to a problem were the same: an
upper bound for shares and accuracies alike. A claim holds where the mean difference over the runs is at least two standard
errors in its favour.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from r1jax.config import GRPO, Optimizer
from r1jax.config.loading import load_config

_, tiny = load_config("r1_pipeline_tiny")
R1 = type(tiny)
PROBLEMS = 512
RATES = (1e-4, 4e-4, 1.6e-3)


def _variant(stage: GRPO, **changes) -> GRPO:
    return dataclasses.replace(stage, **changes)


def _without_language() -> GRPO:
    rules = {name: weight for name, weight in tiny.rl1.sources[0].rewards.items() if name != "language"}
    return _variant(tiny.rl1, sources=(_variant(tiny.rl1.sources[0], rewards=rules),))


def _student_by_rl(lr: float) -> GRPO:
    """As Zero, from what the distilled student starts from. Evaluated often: it counts for as long as distilling took."""
    optimizer = Optimizer(lr=lr, lr_end=lr, warmup_steps=5, weight_decay=0.0)
    return _variant(
        tiny.zero, init="student_base", optimizer=optimizer, steps=100, eval=_variant(tiny.zero.eval, every=5), seed=7
    )


@dataclass(frozen=True)
class Claims(R1):
    rl1_without: GRPO = field(default_factory=_without_language)
    student_rl_a: GRPO = field(default_factory=lambda: _student_by_rl(RATES[0]))
    student_rl_b: GRPO = field(default_factory=lambda: _student_by_rl(RATES[1]))
    student_rl_c: GRPO = field(default_factory=lambda: _student_by_rl(RATES[2]))


def config() -> Claims:
    return Claims()


# -- The table


def rows(stage: Path) -> list[dict]:
    return [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]


def evaluations(stage: Path) -> list[tuple[dict, float]]:
    """(metrics, seconds of rollout, rewards, scoring and update before it) of each evaluation."""
    spent, found = 0.0, []
    for row in rows(stage):
        spent += sum(row.get(f"time/{phase}", 0.0) for phase in ("rollout", "reward", "score", "update"))
        if "eval/pass@1" in row:
            found.append((row, spent))
    return found


def last(stage: Path, name: str = "eval/pass@1") -> float:
    return evaluations(stage)[-1][0][name]


def first(stage: Path, name: str = "eval/pass@1") -> float:
    return evaluations(stage)[0][0][name]


def seconds(run: Path, *stages: str) -> float:
    """Device-seconds of training and sampling, without evaluations and compiling."""
    total = 0.0
    for stage in stages:
        told = json.loads((run / stage / "ledger.json").read_text())
        work = ("rollout", "score", "update", "rewrite")
        total += told["devices"] * sum(told["phases"].get(phase, {}).get("seconds", 0.0) for phase in work)
    return total


def within(stage: Path, budget: float) -> float:
    """The best accuracy of the evaluations that ``budget`` seconds of training allow: in favour of what is compared with."""
    return max(row["eval/pass@1"] for row, spent in evaluations(stage) if spent <= budget or row["step"] == 0)


def wrong_rows(stage: Path) -> tuple[int, int]:
    """(sums among the kept rows, those whose answer is not the sum), by nothing but Python's own addition."""
    asked = wrong = 0
    for row in map(json.loads, (stage / "rows.jsonl").read_text().splitlines()):
        if sum_ := re.fullmatch(r"\w+ (\d+)\+(\d+)=", row["prompt"] if isinstance(row["prompt"], str) else ""):
            asked += 1
            said = re.findall(r"<answer>(.*?)</answer>", row["completion"].rpartition("</think>")[2])
            wrong += said != [str(int(sum_[1]) + int(sum_[2]))]
    return asked, wrong


def error(*shares: float) -> float:
    """Of a difference, or of one share."""
    return math.sqrt(sum(max(p * (1 - p), 0.0) / PROBLEMS for p in shares))


def verdict(pairs: list[tuple[float, float]], *, no_worse: bool = False) -> str:
    """``pairs`` are (what the claim says is higher, what it is compared with) of each run."""
    difference = sum(a - b for a, b in pairs) / len(pairs)
    unsure = math.sqrt(sum(error(*pair) ** 2 for pair in pairs)) / len(pairs)
    holds = difference > -2 * unsure if no_worse else difference >= 2 * unsure and difference > 0
    return f"{difference:+.3f} +- {unsure:.3f} | {'holds' if holds else 'FAILS'}"


def table(runs: list[Path]) -> str:
    def line(claim: str, pairs: list[tuple[float, float]], **how) -> str:
        each = ", ".join(f"{b:.3f} -> {a:.3f}" for a, b in pairs)
        return f"| {claim} | {each} | {verdict(pairs, **how)} |"

    language = "eval/language"
    out = ["| claim | each seed | difference, standard error | verdict |", "|---|---|---|---|"]
    out.append(line("Zero lifts accuracy", [(last(r / "zero"), first(r / "zero")) for r in runs]))
    out.append(
        line(
            "RL-1: language consistency, without and with its reward",
            [(last(r / "rl1", language), last(r / "rl1_without", language)) for r in runs],
        )
    )
    out.append(
        line("RL-1: accuracy is kept", [(last(r / "rl1"), last(r / "rl1_without")) for r in runs], no_worse=True)
    )
    checked = [wrong_rows(r / "rejection") for r in runs]
    said = ", ".join(f"{wrong} of {asked}" for asked, wrong in checked)
    fine = all(asked and not wrong for asked, wrong in checked)
    out.append(f"| rejection sampling keeps only right rows | wrong: {said} | | {'holds' if fine else 'FAILS'} |")
    out.append(line("the final model beats SFT-2 alone", [(last(r / "rl2"), last(r / "sft2")) for r in runs]))
    pairs, notes = [], []
    for r in runs:
        budget = seconds(r, "student")
        by_rl = [within(r / f"student_rl_{name}", budget) for name in "abc"]
        pairs.append((last(r / "student"), max(by_rl)))
        teacher = seconds(r, *(s.name for s in sorted(r.iterdir()) if (s / "ledger.json").exists() and not _apart(s.name)))
        notes.append(
            f"{r.name}: the student began at {first(r / 'student_rl_a'):.3f} and learned for {budget:.0f} s; by RL at lr "
            f"{', '.join(f'{lr:g}: {a:.3f}' for lr, a in zip(RATES, by_rl, strict=True))}; the teacher took {teacher:.0f} s"
        )
    out.append(line("distilling beats RL of the student, in the same time", pairs))
    return "\n".join([*out, "", *notes])


def _apart(stage: str) -> bool:
    """Whether a stage is none of the teacher's."""
    return stage.startswith("student") or stage == "rl1_without"


if __name__ == "__main__":
    print(table([Path(run) for run in sys.argv[1:]]))
