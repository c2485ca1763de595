"""Training again, in torch: the objectives in float64, one answer at a time, in the papers' own form; and an update of
transformers' models by torch's AdamW.

Nothing here knows of packing, masks, weights or global denominators, so that agreement tests those too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import hf_reference
import numpy as np
import torch
from transformers.modeling_layers import MtpLayer
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek

from r1jax import config


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


# -- Training


class Policy(torch.nn.Module):
    """transformers' model with our weights; with DeepSeek-V3's module for multi-token prediction where ours has it.

    After a call ``routed`` holds what each router of the trunk returned: (logits, gates, experts).
    """

    def __init__(self, kind: str, params: dict, model: config.Model):
        super().__init__()
        self.trunk = hf_reference.build(kind, params, model)
        self.routed = {}
        for name, router in self.trunk.named_modules():
            if isinstance(router, deepseek.DeepseekV3TopkRouter):
                router.register_forward_hook(lambda _, inputs, out, name=name: self.routed.update({name: out}))
        self.mtp = None
        if model.mtp_depth:
            c = self.trunk.config
            self.mtp = MtpLayer(c, deepseek.DeepseekV3DecoderLayer, deepseek.DeepseekV3RMSNorm, layer_idx=c.num_hidden_layers)
            self.load_state_dict(tensors(params, model))

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """float32[N, T, V]: logits of the next token, and of the one after it (V3, eq. 21-23), of right-padded int64[N, T]."""
        trunk = self.trunk.model
        hidden = trunk(tokens, use_cache=False).last_hidden_state
        logits = self.trunk.lm_head(hidden)
        if self.mtp is None:
            return logits, None
        length = tokens.shape[1]
        positions = torch.arange(length)[None]
        ahead = self.mtp(
            inputs_embeds=trunk.embed_tokens(tokens.roll(-1, dims=1)),
            previous_hidden_state=hidden,
            position_embeddings=trunk.rotary_emb(hidden, positions),
            attention_mask=torch.full((1, 1, length, length), -torch.inf).triu(1),
            position_ids=positions,
            past_key_values=None,
        )
        return logits, self.trunk.lm_head(ahead)


def tensors(params: dict, model: config.Model) -> dict[str, torch.Tensor]:
    """Our parameters under the names of ``Policy``'s tensors."""
    out = {f"trunk.{name}": x for name, x in hf_reference.state_dict(params, model).items()}
    if model.tied:
        out["trunk.lm_head.weight"] = out["trunk.model.embed_tokens.weight"]
    if model.mtp_depth:
        m = params["mtp"]
        block = hf_reference.state_dict({"segments": (_stacked(m["layer"]),)}, replace(model, segments=model.segments[-1:]))
        out |= {name.replace("model.layers.0.", "mtp.mtp_block."): x for name, x in block.items()}
        norms = {"embed_norm": "enorm", "hidden_norm": "hnorm", "final_norm": "post_norm"}
        out |= {f"mtp.{theirs}.weight": torch.tensor(np.asarray(m[ours]["scale"])) for ours, theirs in norms.items()}
        out["mtp.eh_proj.weight"] = torch.tensor(np.asarray(m["merge"]).T.copy())
    return out


def _stacked(tree):
    return {k: _stacked(v) for k, v in tree.items()} if isinstance(tree, dict) else np.asarray(tree)[None]


def padded(sequences: list[list[int]], fill: int = 0) -> torch.Tensor:
    """int64[N, T]"""
    return torch.nn.utils.rnn.pad_sequence([torch.as_tensor(s) for s in sequences], batch_first=True, padding_value=fill)


def logprobs(policy: Policy, sequences: list[list[int]], trained: list[np.ndarray], temperature: float) -> list[torch.Tensor]:
    """float64[|o|] of each sequence: of its trained tokens."""
    table = (policy(padded(sequences))[0].double() / temperature).log_softmax(-1)
    return [row[np.flatnonzero(t) - 1, torch.tensor(s)[t]] for row, s, t in zip(table, sequences, trained, strict=True)]


def sft(policy: Policy, sequences: list[list[int]], trained: list[np.ndarray], stage: config.SFT) -> dict[str, torch.Tensor]:
    """Mean cross-entropy of the trained tokens, V3's multi-token prediction (eq. 24-25) and balance loss (eq. 17-20); ``loss``
    is all of it."""
    logits, ahead = policy(padded(sequences))
    labels = padded([np.where(t, s, -100) for s, t in zip(sequences, trained, strict=True)], fill=-100)
    cross_entropy = torch.nn.functional.cross_entropy
    parts = {"nll": cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())}
    loss = parts["nll"]
    if ahead is not None:
        parts["mtp"] = cross_entropy(ahead[:, :-2].flatten(0, 1), labels[:, 2:].flatten())
        loss = loss + stage.mtp_weight * parts["mtp"]
    if policy.routed:
        lengths = [len(s) for s in sequences]
        each = [_balance(*out, n, lengths) for out in policy.routed.values() for n in range(len(lengths))]
        parts["balance"] = torch.stack(each).mean()
        loss = loss + stage.balance_weight * parts["balance"]
    return parts | {"loss": loss}


def _balance(logits: torch.Tensor, _gates, experts: torch.Tensor, n: int, lengths: list[int]) -> torch.Tensor:
    """V3's balance loss of sequence n in one layer, from the router's outputs over all sequences, padded."""
    count = logits.shape[1]
    scores = logits.sigmoid().view(len(lengths), -1, count)[n, : lengths[n]]
    chosen = torch.nn.functional.one_hot(experts, count).sum(1).view(len(lengths), -1, count)[n, : lengths[n]]
    often = count / experts.shape[1] * chosen.double().mean(0)
    return (often * (scores / scores.sum(1, keepdim=True)).mean(0)).sum()


def adamw(module: torch.nn.Module, c: config.Optimizer, *, decays=lambda name, p: p.ndim > 1 and "embed" not in name):
    """torch's, with weight decay for what ``decays``: matrices, without the embedding."""
    groups = {True: [], False: []}
    for name, p in module.named_parameters():
        groups[decays(name, p)].append(p)
    settings = [{"params": groups[True], "weight_decay": c.weight_decay}, {"params": groups[False], "weight_decay": 0.0}]
    return torch.optim.AdamW(settings, lr=c.lr, betas=(c.b1, c.b2), eps=c.eps)


def schedule(adamw: torch.optim.Optimizer, c: config.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Of torch's parts: a linear warm-up whose last step has the full rate, then a cosine that ends at the last step."""
    parts = torch.optim.lr_scheduler
    warm = parts.LinearLR(adamw, start_factor=1 / max(c.warmup_steps, 1), total_iters=max(c.warmup_steps - 1, 0))
    end = c.lr if c.lr_end is None else c.lr_end
    cosine = parts.CosineAnnealingLR(adamw, T_max=max(steps - 1 - c.warmup_steps, 1), eta_min=end)
    return parts.SequentialLR(adamw, [warm, cosine], milestones=[c.warmup_steps])


def update(loss: torch.Tensor, adamw: torch.optim.Optimizer, c: config.Optimizer) -> float:
    """One step down the loss's clipped gradient; the gradient's norm before. The clipped gradient stays in ``.grad``."""
    adamw.zero_grad(set_to_none=False)
    loss.backward()
    parameters = [p for group in adamw.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, c.clip_norm or math.inf)
    adamw.step()
    return norm.item()
