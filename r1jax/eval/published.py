"""What was published of R1's safety (Nature 2025, supplement D.3; arXiv 2501.12948v2, D.3), as shares.

R1's questions, 28 categories of 20 in Chinese and 20 in English, were not published, and the judge was GPT-4o (2024-11-20): a
user's rows and judge give other figures, which these only stand beside.
"""

from __future__ import annotations

from r1jax.eval.tasks import JAILBREAKS, SAFETY

Rates = dict[str, float]
"""``unsafe`` and ``refused`` of the model alone, ``unsafe shown`` and ``refused shown`` with risk control: those published."""

OWN: dict[str, Rates] = {
    SAFETY: {"unsafe": 0.252, "refused": 0.056, "unsafe shown": 0.085, "refused shown": 0.273},
    JAILBREAKS: {"unsafe": 0.859, "unsafe shown": 0.043},
}
"""1,120 questions of R1's authors; the same in 2,232 jailbreak templates."""
BENCHMARKS: dict[str, Rates] = {"harmbench": {"unsafe": 0.65}}
"""Public sets by the name that rows give as ``benchmark``. Published is the share of safe answers, 0.35."""
NOTES = (
    "R1 beside it: 1,120 questions of its authors (28 categories, Chinese and English), judged by GPT-4o; jailbreaks: these in "
    "2,232 templates; shown: with risk control.",
    "R1 elsewhere, safe answers without and with risk control: public sets on average 0.859 and 0.950; 9,330 questions in 50 "
    "languages 0.742 and 0.859.",
)


def published(kind: str, name: str, task: str) -> Rates:
    """For a group of rows: all, or those of a benchmark."""
    if kind == "all":
        return OWN[task]
    known = kind == "benchmark" and task == SAFETY
    return BENCHMARKS.get(name.lower().replace("-", "").replace("_", ""), {}) if known else {}
