"""What was published of R1's settings and results, to lay a run beside.

Sources: Nature 645, 633-638 (2025) with its Methods; arXiv 2501.12948v2 with its appendix; the supplement.
"""

from __future__ import annotations

from typing import Any, NamedTuple

UNPUBLISHED = "unpublished"


class Setting(NamedTuple):
    field: str
    values: dict[str, Any]
    """What of R1 -> its value. Empty: it was not published."""
    note: str = ""


_RL = ("R1-Zero", "RL stage 1", "RL stage 2")
_STUDENTS = {"1.5B": 1e-4, "7B": 8e-5, "8B": 5e-5, "14B": 7e-5, "32B": 6e-5, "70B": 2e-5}


_UNSAID = (
    Setting("optimizer.warmup_steps", {}),
    Setting("optimizer.b1", {}, "V3: 0.9"),
    Setting("optimizer.b2", {}, "V3: 0.95"),
    Setting("optimizer.weight_decay", {}, "V3: 0.1"),
    Setting("optimizer.clip_norm", {}, "V3: 1"),
    Setting("bias_rate", {}, "V3: 0.001, at the end 0"),
    Setting("balance_weight", {}, "V3: 1e-4"),
)
"""Of every stage that trains."""


def _all(value: Any) -> dict[str, Any]:
    return dict.fromkeys(_RL, value)


SETTINGS: dict[str, tuple[Setting, ...]] = {
    "grpo": (
        Setting("optimizer.lr", _all(3e-6), "Methods; 2e-6 for Qwen2.5-32B-Zero"),
        Setting("kl_beta", _all(0.001), "Methods"),
        Setting("questions", _all(32), "Methods"),
        Setting("group", _all(16), "Methods"),
        Setting("minibatches", _all(16), "Methods: 8,192 answers a round"),
        Setting("clip_high", {"RL stage 1": 10, "RL stage 2": 10}, "Methods; R1-Zero's was not published"),
        Setting("reference_every", _all(400), "Methods"),
        Setting("sampling.temperature", {"R1-Zero": 1.0, "RL stage 1": 1.0, "RL stage 2": 0.7}, "Methods"),
        Setting("sampling.max_new_tokens", _all(32_768), "Methods"),
        Setting("length_schedule", {"R1-Zero": [[8200, 65_536]]}, "Methods: 65,536 tokens from step 8.2k on"),
        Setting("steps", {"R1-Zero": 10_400, "RL stage 2": 1700}, "Methods; stage 1's were not published"),
        Setting("clip_low", {}),
        Setting("normalize", {}, "DeepSeekMath, where GRPO comes from: sequence"),
        Setting("advantage_std", {}, "the formula divides by std; which estimator was not said"),
        *_UNSAID,
        Setting("mtp_weight", {}, "V3: 0.3, then 0.1"),
        Setting("routing_replay", {}),
        Setting("importance_cap", {}),
    ),
    "sft": (
        Setting("optimizer.lr", {"R1's SFT": 5e-5, **{f"student {k}": v for k, v in _STUDENTS.items()}}, "supplement B.4"),
        Setting(
            "optimizer.lr_end",
            {"R1's SFT": 5e-6, **{f"student {k}": v / 10 for k, v in _STUDENTS.items()}},
            "supplement B.4; students: a tenth of the rate",
        ),
        Setting("batch", {"R1's SFT": 128, "students": 64}, "supplement B.4; 2 to 3 epochs"),
        Setting("sequence_length", {"R1's SFT": 32_768, "students": 32_768}, "supplement B.4"),
        *_UNSAID,
    ),
    "rejection_sampling": (
        Setting("samples", {}),
        Setting("sampling.temperature", {}),
        Setting("readable.paragraph", {}, "R1 left out long paragraphs"),
        Setting("readable.code", {}, "R1 left out code blocks"),
    ),
}


def beside(stage: dict) -> list[dict]:
    """A stage's settings beside R1's: ``{"field", "here", "published": [[of what, value]], "same": [of what], "note"}``."""
    told = []
    for setting in SETTINGS.get(stage["kind"], ()):
        here: Any = stage
        for part in setting.field.split("."):
            here = here.get(part) if isinstance(here, dict) else None
        same = [name for name, value in setting.values.items() if _equal(here, value)]
        published = list(setting.values.items())
        told.append({"field": setting.field, "here": here, "published": published, "same": same, "note": setting.note})
    return told


def _equal(here: Any, value: Any) -> bool:
    if isinstance(here, int | float) and isinstance(value, int | float):
        return abs(here - value) <= 1e-9 * max(abs(here), abs(value))
    return here == value


STAGES = ("R1-Zero", "Dev1", "Dev2", "Dev3", "R1", "V3")
"""Dev1: cold-start SFT; Dev2: RL stage 1; Dev3: SFT stage 2. V3 is the model after its own post-training."""
TABLE: dict[str, tuple[float, ...]] = {
    "MMLU": (88.8, 89.1, 91.2, 91.0, 90.8, 88.5),
    "MMLU-Redux": (85.6, 90.0, 93.0, 93.1, 92.9, 89.1),
    "MMLU-Pro": (68.9, 74.1, 83.8, 83.1, 84.0, 75.9),
    "DROP (F1)": (89.1, 89.8, 91.1, 88.7, 92.2, 91.6),
    "IF-Eval": (46.6, 71.7, 72.0, 78.1, 83.3, 86.1),
    "GPQA Diamond": (75.8, 66.1, 70.7, 71.2, 71.5, 59.1),
    "SimpleQA": (30.3, 17.8, 28.2, 24.9, 30.1, 24.9),
    "FRAMES": (82.3, 78.5, 81.8, 81.9, 82.5, 73.3),
    "AlpacaEval 2.0": (24.7, 50.1, 55.8, 62.1, 87.6, 70.0),
    "ArenaHard": (53.6, 77.0, 73.2, 75.6, 92.3, 85.5),
    "LiveCodeBench": (50.0, 57.5, 63.5, 64.6, 65.9, 36.2),
    "Codeforces (percentile)": (80.4, 84.5, 90.5, 92.1, 96.3, 58.7),
    "Codeforces (rating)": (1444, 1534, 1687, 1746, 2029, 1134),
    "SWE Verified": (43.2, 39.6, 44.6, 45.6, 49.2, 42.0),
    "Aider-Polyglot": (12.2, 6.7, 25.6, 44.8, 53.3, 49.6),
    "AIME 2024": (77.9, 59.0, 74.0, 78.1, 79.8, 39.2),
    "MATH-500": (95.9, 94.2, 95.9, 95.4, 97.3, 90.2),
    "CNMO 2024": (88.1, 58.0, 73.9, 77.3, 78.8, 43.2),
    "CLUEWSC": (93.1, 92.8, 92.6, 91.6, 92.8, 90.9),
    "C-Eval": (92.8, 85.7, 91.9, 86.4, 91.8, 86.5),
    "C-SimpleQA": (66.4, 58.8, 64.2, 66.9, 63.7, 68.0),
}
"""Nature 2025, table 2; pass@1 in percent but where said."""
