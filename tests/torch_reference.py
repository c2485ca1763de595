"""The objectives again, in torch and float64: one answer at a time, unpacked, in the papers' own form.

Nothing here knows of packing, masks, weights or global denominators, so that agreement with ``r1jax.losses`` tests those too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Answer:
    """One sampled answer of |o| tokens; every tensor is float64[|o|], log-probabilities of its tokens."""

    logprobs: torch.Tensor
    old: torch.Tensor
    ref: torch.Tensor
    sampler: torch.Tensor
    advantage: float


def group_advantages(rewards: torch.Tensor, group: int, *, std: bool = True, eps: float = 1e-6) -> torch.Tensor:
    """float64[N] of float64[N]; only for groups whose rewards differ."""
    groups = rewards.double().split(group)
    return torch.cat([(r - r.mean()) / ((torch.std(r, correction=1) + eps) if std else 1.0) for r in groups])


def grpo(
    answers: list[Answer],
    *,
    normalize: str,
    cap: int,
    ratio_level: str,
    clip_low: float,
    clip_high: float,
    kl_beta: float,
    importance_cap: float,
) -> torch.Tensor:
    """The loss of a batch: minus the mean objective, normalised as GRPO, DAPO or Dr. GRPO write it."""
    losses = []
    for a in answers:
        log_ratio = a.logprobs - a.old
        if ratio_level == "sequence":
            log_ratio = log_ratio.mean().expand(len(log_ratio))
        ratio = log_ratio.exp()
        objective = torch.min(ratio * a.advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * a.advantage)
        if importance_cap:
            objective = objective * (a.old - a.sampler).exp().clamp(max=importance_cap)
        kl = (a.ref - a.logprobs).exp() - (a.ref - a.logprobs) - 1
        losses.append(-(objective - kl_beta * kl))
    if normalize == "sequence":
        return torch.stack([loss.mean() for loss in losses]).mean()
    if normalize == "token":
        return torch.cat(losses).mean()
    return torch.stack([loss.sum() / cap for loss in losses]).mean()


def random_answers(count: int, longest: int, *, seed: int, spread: float = 1.0) -> list[Answer]:
    """Answers of 1 to ``longest`` tokens; ``logprobs`` requires a gradient.

    Log-ratios have the standard deviation ``spread``; half of their variance is shared by an answer's tokens, so that clips
    bind at the level of sequences too.
    """
    g = torch.Generator().manual_seed(seed)

    def near(x: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(len(x) + 1, generator=g, dtype=torch.float64)
        return x + spread * (noise[1:] + noise[0]) / math.sqrt(2)

    answers = []
    for _ in range(count):
        length = int(torch.randint(1, longest + 1, (), generator=g))
        old = -3 * torch.rand(length, generator=g, dtype=torch.float64) - 1
        advantage = float(torch.randn((), generator=g, dtype=torch.float64))
        answers.append(Answer(near(old), old, near(old), near(old), advantage))
    return [replace(a, logprobs=a.logprobs.requires_grad_()) for a in answers]


def value_and_grad(answers: list[Answer], **options) -> tuple[float, list[torch.Tensor]]:
    """``grpo`` and its gradient in each answer's ``logprobs``."""
    loss = grpo(answers, **options)
    assert math.isfinite(loss.item())
    return loss.item(), list(torch.autograd.grad(loss, [a.logprobs for a in answers]))
