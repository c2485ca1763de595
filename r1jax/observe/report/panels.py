"""Which metrics a report draws together, under which words. ``../README.md`` says what each means and what is healthy."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Panel:
    title: str
    keys: str
    """A regular expression of the whole key."""
    unit: str = ""
    note: str = ""
    """What to look for, in a line."""


GROUPS: dict[str, tuple[Panel, ...]] = {
    "Reward": (
        Panel("Reward by name", r"reward/(?!.*/errors/).*", "reward", "format rises first, accuracy follows"),
        Panel("Reward by source", r"source/.*/reward", "reward", "no source falls while another rises"),
        Panel("Groups without a signal", r"groups/no_signal", "share", "0.1 to 0.7; near 1 the task is too hard or too easy"),
        Panel("Groups replaced", r"groups/replaced", "groups"),
        Panel("Scores that failed", r"reward/.*/errors/.*", "scores", "absent in a healthy run"),
        Panel("Answers kept", r"kept", "share"),
    ),
    "Held-out problems": (
        Panel("Problems solved", r"eval/(pass@\d+|greedy)", "share", "pass@K well above pass@1: there is something to learn"),
        Panel("Held-out rewards", r"eval/(?!pass@|greedy|entropy|length|truncated|left_out).*", "reward"),
        Panel("Held-out length", r"eval/length", "tokens"),
        Panel("Held-out answers cut off", r"eval/truncated", "share"),
        Panel("Held-out entropy", r"eval/entropy", "nats"),
    ),
    "Answers": (
        Panel("Length", r"length/(mean|max)", "tokens", "changes slowly; a jump to the cap is a collapse"),
        Panel("Answers cut off at the cap", r"length/truncated", "share", "below 0.1"),
        Panel("Reflection, all words", r"reflection/all", "words per answer", "R1-Zero: rose five- to sevenfold"),
        Panel("Reflection by word", r"reflection/(?!all).*", "words per answer", "in R1-Zero wait came from step 8,000 on"),
    ),
    "Policy": (
        Panel("KL to the reference", r"kl", "nats per token", "below 0.1; falls to 0 when the reference is refreshed"),
        Panel("Entropy", r"entropy", "nats per token", "falls slowly; near 0 nothing new is tried"),
        Panel("Tokens clipped", r"clip/.*", "share", "below 0.05"),
        Panel("Ratio of policy to pi_old", r"ratio", "", "0.98 to 1.02"),
        Panel("KL to the teacher", r"teacher/kl", "nats per token", "falls"),
        Panel("Guards that hold", r"guard/.*", "", "absent in a healthy run"),
    ),
    "Critic": (
        Panel("Values and returns", r"critic/(value|return)", "reward", "the values come to the returns"),
        Panel("Variance of the returns that is explained", r"critic/explained", "share", "rises from 0 or below"),
        Panel("Loss of the critic", r"critic/loss", "", "falls"),
        Panel("Values clipped", r"critic/clipped", "share", "below 0.2"),
        Panel("Gradient norm of the critic", r"critic/grad_norm", ""),
        Panel("Updates of the critic left out", r"critic/skipped", "updates", "0 in a healthy run"),
    ),
    "Reward model": (
        Panel("Answers put in the right order", r"preference/accuracy", "share", "0.6 to 0.8 where people disagree"),
        Panel("Lead of the better answer", r"preference/margin", "value", "grows slowly"),
        Panel("Values of good and bad answers", r"preference/(good|bad)", "value", "apart"),
        Panel("Length of chosen and rejected answers", r"length/(chosen|rejected)", "tokens", "alike"),
        Panel("Pairs left out to balance lengths", r"data/unbalanced", "pairs"),
    ),
    "Update": (
        Panel("Loss", r"loss", "", "SFT: falls; GRPO: look at the reward instead"),
        Panel("Parts of the loss", r"loss/(policy|kl|nll|mtp)", ""),
        Panel("Gradient norm", r"grad/norm", "", "steady; a climb over many steps ends in divergence"),
        Panel("Learning rate", r"lr", ""),
        Panel("Updates left out", r"update/skipped", "updates", "0 in a healthy run"),
        Panel("Tokens trained on", r"tokens", "tokens"),
    ),
    "Experts": (
        Panel("Most and least loaded expert", r"expert/(max|min)_load", "of the mean", "below 3 and above 0.1"),
        Panel("Balance loss", r"loss/balance", "", "near 1 is even load"),
        Panel("Choices dropped", r"expert/dropped", "share", "below 0.01"),
    ),
    "Sampler against trainer": (
        Panel("Difference of log-probs", r"sampler/logprob_diff_(mean|max)", "nats", "mean: 1e-4 in float32, 0.02 in bfloat16"),
        Panel("Ratio of trainer to sampler", r"sampler/ratio_mean", "", "1 within 1e-4 in float32, 0.01 in bfloat16"),
        Panel("Routes that disagree", r"sampler/route_disagreement", "share", "below 0.05"),
        Panel("Importance weights capped", r"sampler/importance_capped", "share", "below 0.01"),
    ),
    "Time and speed": (
        Panel("Seconds of a step", r"time/.*", "s", "the rollout is the larger part"),
        Panel("Speed", r"tokens_per_s/.*", "tokens/s", "steady; the first step compiles"),
        Panel("Busiest device, without and with copies of experts", r"rollout/device_load(_alone)?", "of the mean"),
        Panel("Slots busy", r"rollout/slots_busy", "share", "above 0.7"),
        Panel("Tokens of a decode step", r"rollout/tokens_per_step", "tokens"),
        Panel("Drafts accepted", r"rollout/drafts_accepted", "share", "V3: 0.85 to 0.9"),
        Panel("Age of sampled tokens", r"rollout/age_(mean|max)", "updates"),
        Panel("Answers of several policies", r"rollout/partial", "share", "below 0.3"),
        Panel("Key-value cache", r"rollout/cache_peak_bytes", "bytes"),
        Panel("Cache of a token", r"rollout/cache_bytes_per_token", "bytes"),
        Panel("Weights moved to the sampler", r"rollout/reshard_bytes", "bytes"),
    ),
    "Data": (
        Panel("Epochs by source", r"data/epochs/.*", "epochs"),
        Panel("Rows left out", r"(data|eval)/left_out.*", "rows"),
        Panel("Prompts asked", r"data/prompts/.*", "prompts"),
        Panel("Rounds", r"round", "rounds"),
    ),
}
OTHER = "Other"


def lay_out(keys: Iterable[str]) -> list[dict]:
    """The groups that have something to show: ``[{"title", "panels": [{"title", "unit", "note", "keys"}]}]``. A key that no
    panel names has one of its own under ``OTHER``."""
    left = sorted(keys)
    groups = []
    for title, panels in GROUPS.items():
        shown = []
        for panel in panels:
            mine = sorted((k for k in left if re.fullmatch(panel.keys, k)), key=_order)
            left = [k for k in left if k not in mine]
            if mine:
                shown.append({"title": panel.title, "unit": panel.unit, "note": panel.note, "keys": mine})
        if shown:
            groups.append({"title": title, "panels": shown})
    if left:
        groups.append({"title": OTHER, "panels": [{"title": k, "unit": "", "note": "", "keys": [k]} for k in left]})
    return groups


def _order(key: str) -> tuple:
    """The sum first, and pass@2 before pass@10."""
    return (not key.endswith(("/total", "/all")), [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", key)])
