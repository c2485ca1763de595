"""transformers' models: an independent implementation of every family; the names of tensors and fields are the product's."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
import transformers

from r1jax import config
from r1jax.convert import hf_config, names


def draw(module: torch.nn.Module, seed: int = 0, kernel: float = 0.25, **scales: float) -> None:
    """Fills a module with values that leave nothing at 0 or 1: norms spread around 1, biases (the router's too) around 0.

    ``scales`` holds the spread of the matrices whose name contains the key, instead of ``kernel``.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict(keep_vars=True).items():
        values = torch.randn(tensor.shape, generator=generator)
        if "norm" in name:
            values = 1 + 0.2 * values
        elif "bias" in name:
            values = 0.1 * values
        else:
            values = next((scale for part, scale in scales.items() if part in name), kernel) * values
        tensor.data.copy_(values)


def parameters(tensors: dict[str, np.ndarray], entries: list[names.Entry]) -> dict[str, Any]:
    """Our parameters, float32, from theirs by name."""
    found: dict[tuple, dict[tuple, np.ndarray]] = {}
    for entry in entries:
        for part, value in zip(entry.parts, entry.split(tensors[entry.name]), strict=True):
            found.setdefault(part.path, {})[part.index] = value
    tree: dict[str, Any] = {}
    for path, slices in found.items():
        counts = [i + 1 for i in max(slices)]
        stacked = np.stack([slices[i] for i in np.ndindex(*counts)]).reshape(*counts, *slices[(0,) * len(counts)].shape)
        place = tree
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = stacked
    tree["segments"] = tuple(tree["segments"][s] for s in sorted(tree["segments"]))
    return tree


def tensors(params: dict[str, Any], entries: list[names.Entry]) -> dict[str, np.ndarray]:
    """Theirs by name from ours."""

    def value(part):
        leaf = params
        for key in part.path:
            leaf = leaf[key]
        return np.asarray(leaf[part.index])

    return {entry.name: entry.join([value(part) for part in entry.parts]) for entry in entries}


def state_dict(params: dict, model: config.Model) -> dict[str, torch.Tensor]:
    """The tensors of the rooms that ``params`` has, as transformers 5 names them; multi-token prediction has none there."""
    entries = names.entries(dataclasses.replace(model, mtp_depth=0), hf_config.infer(model), fused=True)
    found = tensors(params, [entry for entry in entries if entry.parts[0].path[0] in params])
    return {name: torch.tensor(np.ascontiguousarray(x)) for name, x in found.items()}


def configuration(kind: str, model: config.Model) -> transformers.PreTrainedConfig:
    """transformers' ``{kind}Config`` of our model."""
    return getattr(transformers, f"{kind}Config").from_dict(hf_config.write(model) | {"attn_implementation": "eager"})


def build(kind: str, params: dict, model: config.Model) -> torch.nn.Module:
    """transformers' ``{kind}ForCausalLM`` with our weights, every tensor of it set."""
    theirs = getattr(transformers, f"{kind}ForCausalLM")(configuration(kind, model)).eval()
    missing, unexpected = theirs.load_state_dict(state_dict(params, model), strict=False)
    absent = set(missing) - ({"lm_head.weight"} if model.tied else set())
    if absent or unexpected:
        raise ValueError(f"tensors without a counterpart: theirs {sorted(absent)}, ours {sorted(unexpected)}")
    return theirs


def logits(theirs: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
    """float32[B, T, V]"""
    with torch.no_grad():
        return theirs(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
