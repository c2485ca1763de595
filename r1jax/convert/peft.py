"""The adapters of a LoRA run as a PEFT directory: ``adapter_config.json`` and ``adapter_model.safetensors``.

A matrix is named as it was released, an expert at a time. Its ``lora_A`` is [r, in] and its ``lora_B`` [out, r], ours are
``a[*in, r]`` and ``b[r, *out]``. Where one released matrix is several of ours (``kv_b_proj`` is k_b and v_b) it gets the rows
of all their ``a``, and a ``lora_B`` that is zero where one does not reach; its rank and its alpha grow with them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from r1jax import config
from r1jax.config import ConfigError
from r1jax.convert import export, names
from r1jax.convert.write import Piece, Tensor, new_directory, write_file, write_json
from r1jax.data.tokenizer import Tokenizer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
EXPERT = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Plan:
    """What an export of adapters writes."""

    config: dict[str, Any]
    """adapter_config.json."""
    tokenizer: Tokenizer | None
    tensors: dict[str, np.ndarray]
    """float32, by name."""
    dtype: str
    has_experts: bool

    @property
    def misread(self) -> list[str]:
        """The last names of modules that PEFT 0.21 with transformers 5 does not load, without a word: where there are experts
        it takes names that these have too for theirs alone."""
        modules = {name.rsplit(".", 2)[0] for name in self.tensors}
        return sorted({_last(m) for m in modules if self.has_experts and ".experts." not in m and _last(m) in EXPERT})

    @property
    def modules(self) -> int:
        return len(self.tensors) // 2

    @property
    def bytes(self) -> int:
        return sum(piece.bytes for piece in self.pieces())

    def pieces(self) -> list[Piece]:
        stored = export.STORED[self.dtype]
        return [Piece((Tensor(name, stored, x.shape),), lambda x=x: (x,)) for name, x in self.tensors.items()]


def plan(whole: export.Plan, adapters: Any, settings: config.LoRA, base: str, dtype: str | None = None) -> Plan:
    """What an export of ``adapters`` writes.

    Args:
      whole: the export of the weights with the adapters merged into them, whose names and rotary order these share.
      adapters: numpy arrays, a tree of ``lora.Adapted`` without base, and None where there is none.
      base: the name of the model that they stand beside.
      dtype: ``float32`` or ``bfloat16``; None is float32.

    Raises:
      ConfigError: there are adapters in the multi-token-prediction module, which transformers does not have.
    """
    tensors, ranks, named = {}, {}, Counter()
    for entry, _ in whole.tensors:
        module, _, kind = entry.name.rpartition(".")
        if kind != "weight" or entry.copy_of:
            continue
        named[_last(module)] += 1
        learned = [export.leaf(adapters, part) for part in entry.parts]
        if all(adapter is None for adapter in learned):
            continue
        if entry.parts[0].path[0] == "mtp":
            raise ConfigError(
                f"lora.targets reach {'/'.join(map(str, entry.parts[0].path))}, and PEFT has no multi-token prediction; export "
                "without --adapter, which merges"
            )
        a, b = _of_module(whole, entry, learned)
        tensors |= {f"{PREFIX}{module}.lora_A.weight": a, f"{PREFIX}{module}.lora_B.weight": b}
        ranks[module] = len(a)
    name, _, revision = base.partition("@") if not Path(base.partition("@")[0]).exists() else (base, "", "")
    alike = Counter((_last(module), rank) for module, rank in ranks.items())

    def spelled(module: str) -> str:
        """Its last name stands for all that have it, where they are all adapted alike."""
        return _last(module) if alike[_last(module), ranks[module]] == named[_last(module)] else module

    rank_of = {spelled(module): rank for module, rank in ranks.items() if rank != settings.rank}
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "revision": revision or None,
        "inference_mode": True,
        "r": settings.rank,
        "lora_alpha": _whole(settings.alpha),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": sorted(set(map(spelled, ranks))),
        "rank_pattern": rank_of,
        "alpha_pattern": {module: _whole(settings.alpha * rank / settings.rank) for module, rank in rank_of.items()},
    }
    return Plan(described, whole.tokenizer, tensors, dtype or "float32", whole.model.moe is not None)


def write(planned: Plan, out: Path) -> None:
    """Writes a directory. Nothing is left if it fails.

    Raises:
      ConfigError: ``out`` is not empty or cannot be written.
    """
    with new_directory(out, planned.bytes) as part:
        write_file(part / WEIGHTS, planned.pieces())
        if planned.tokenizer is not None:
            planned.tokenizer.save(part)
        write_json(part / CONFIG, planned.config)


def _of_module(whole: export.Plan, entry: names.Entry, learned: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """``lora_A`` and ``lora_B``."""
    ranks = [0 if adapter is None else adapter.a.shape[-1] for adapter in learned]
    into, out = [], []
    for i, (part, adapter, shape) in enumerate(zip(entry.parts, learned, entry.part_shapes, strict=True)):
        block = np.zeros((sum(ranks), *shape[entry.layout.inputs :]), np.float32)
        if adapter is not None:
            into.append(adapter.a[part.index].reshape(-1, ranks[i]).T)
            b = adapter.b[part.index]
            first = sum(ranks[:i])
            block[first : first + ranks[i]] = export.neighbouring(b, part, whole.model) if whole.half_split else b
        out.append(block)
    return np.concatenate(into), np.concatenate(out, axis=-1).reshape(sum(ranks), -1).T


def _last(module: str) -> str:
    return module.rpartition(".")[2]


def _whole(number: float) -> int | float:
    """Engines want alpha as a whole number where it is one."""
    return int(number) if number == int(number) else number
