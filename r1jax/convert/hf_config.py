"""A Hugging Face config.json to our Model and back. What a Model cannot say is refused by name, never dropped.

Released files and those of transformers 5 are both read: ``rope_scaling`` (with ``type`` or ``rope_type``) or
``rope_parameters``, ``torch_dtype`` or ``dtype``, ``num_experts`` or ``num_local_experts``. Released names are written.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any, Literal

from r1jax import config
from r1jax.config import ConfigError

Family = Literal["llama", "qwen2", "qwen3", "qwen3_moe", "deepseek_v3"]
ARCHITECTURES: dict[str, Family] = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "DeepseekV3ForCausalLM": "deepseek_v3",
}
DTYPES = {"bfloat16": "bfloat16", "float32": "float32", "float16": "float32"}  # theirs to ours
# Fields of ours and how a config.json calls them, where the value is the same number.
COMMON = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "tied": "tie_word_embeddings",
    "init_std": "initializer_range",
}
LATENT = {
    "n_heads": "num_attention_heads",
    "q_rank": "q_lora_rank",
    "kv_rank": "kv_lora_rank",
    "nope_dim": "qk_nope_head_dim",
    "rope_dim": "qk_rope_head_dim",
    "v_dim": "v_head_dim",
}
GROUPED = {"n_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads", "head_dim": "head_dim"}
SOFTMAX_MOE = {
    "n_experts": "num_experts",
    "top_k": "num_experts_per_tok",
    "d_ff": "moe_intermediate_size",
    "renormalize": "norm_topk_prob",
}
SIGMOID_MOE = SOFTMAX_MOE | {
    "n_experts": "n_routed_experts",
    "n_shared": "n_shared_experts",
    "n_groups": "n_group",
    "top_groups": "topk_group",
    "scale": "routed_scaling_factor",
}
STRETCH = {"factor": "factor", "original_length": "original_max_position_embeddings"}
YARN = STRETCH | {"beta_fast": "beta_fast", "beta_slow": "beta_slow"}
MSCALES = {"mscale": "mscale", "mscale_all_dim": "mscale_all_dim"}
NO_MSCALE = {"mscale": 1.0, "mscale_all_dim": 1.0}  # their quotient is 1
LLAMA3 = STRETCH | {"low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor"}
# What a file may leave out or set to null, and what it then means.
DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "q_lora_rank": None,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 0,
    "num_nextn_predict_layers": 0,
    "decoder_sparse_step": 1,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
# Fields that may be absent, or set to one of these.
ONLY = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1.0,),
    "scoring_func": ("sigmoid",),
    "topk_method": ("noaux_tc",),
    "moe_layer_freq": (1,),
}
# transformers 5's names for what is written under the released one, and what is not true of the exported files.
NOT_KEPT = {"rope_parameters", "dtype", "num_local_experts", "layer_types", "qk_head_dim"}
NOT_KEPT |= {"quantization_config", "transformers_version", "auto_map"}


def family(hf: Mapping[str, Any]) -> Family:
    """Which of the supported families a config.json is of; the architecture decides, or ``model_type`` where it is not named.

    Raises:
      ConfigError: another architecture.
    """
    named = hf.get("architectures")
    known = ", ".join(ARCHITECTURES)
    if named:
        if named[0] not in ARCHITECTURES:
            raise ConfigError(f"architecture {named[0]!r} is not supported; {known} are")
        return ARCHITECTURES[named[0]]
    if hf.get("model_type") not in ARCHITECTURES.values():
        raise ConfigError(f"model_type {hf.get('model_type')!r} is not supported; the architectures {known} are")
    return hf["model_type"]


def infer(model: config.Model) -> Family:
    """The family that a Model belongs to by its attention and its feed-forward."""
    a = model.attention
    if a.kind == "mla":
        return "deepseek_v3"
    if _has_moe(model):
        return "qwen3_moe"
    return "qwen3" if a.qk_norm else "qwen2" if a.qkv_bias else "llama"


def read(hf: Mapping[str, Any]) -> config.Model:
    """The Model of a config.json. ``dtype`` and ``matmul_dtype`` stay float32; ``mtp_depth`` is what the file says, also
    where its tensors were left out (transformers drops them), so whoever opens the tensors must compare.

    Raises:
      ConfigError: something that no Model can say, or a size that is missing.
    """
    kind = family(hf)
    _refuse(hf, kind)
    latent = kind == "deepseek_v3"
    layers = _layers(hf, kind)
    moe = None
    if "moe" in layers:
        moe = _take(hf, SIGMOID_MOE) if latent else _softmax_moe(hf)
    said = _take(hf, COMMON) | {
        "segments": [{"ff": ff, "count": len(list(run))} for ff, run in itertools.groupby(layers)],
        "attention": _take(hf, LATENT) | {"kind": "mla"} if latent else _grouped(hf, kind),
        "moe": moe,
        "rope": _rope(hf, latent) | {"interleaved": latent and hf.get("rope_interleave") is not False},
        "mtp_depth": _need(hf, "num_nextn_predict_layers") if latent else 0,
        "param_dtype": _dtype(hf),
    }
    return config.from_json(config.Model, said, "config.json")


def write(model: config.Model, like: Mapping[str, Any] | None = None, trained_length: int = 0) -> dict[str, Any]:
    """The config.json of a Model under the released names.

    Args:
      like: the config.json that it was imported from: fields that a Model does not have are kept (``max_position_embeddings``,
        the ids of special tokens, ...), and the family with them.
      trained_length: tokens of the rows that it was trained on, which ``max_position_embeddings`` is at least.

    Raises:
      ConfigError: the family cannot say what the Model does.
    """
    kind = family(like) if like else infer(model)
    a, layers = model.attention, _feed_forwards(model)
    out = {"max_position_embeddings": int(model.rope.original_length * model.rope.factor), "use_cache": True}
    out |= {name: value for name, value in (like or {}).items() if name not in NOT_KEPT}
    out["max_position_embeddings"] = max(out["max_position_embeddings"] or 0, trained_length)
    out |= {"architectures": [next(name for name, its in ARCHITECTURES.items() if its == kind)], "model_type": kind}
    out |= _give(model, COMMON) | {"num_hidden_layers": len(layers), "hidden_act": "silu", "attention_dropout": 0.0}
    out |= {"rope_theta": model.rope.theta, "rope_scaling": _scaling(model.rope, a.kind == "mla")}
    out |= {"torch_dtype": model.param_dtype}
    if kind == "deepseek_v3" and a.kind == "mla":
        out.pop("head_dim", None)  # transformers 5 keeps the rotary width there
        out |= _give(a, LATENT) | {"num_key_value_heads": a.n_heads, "rope_interleave": model.rope.interleaved}
        out |= {"first_k_dense_replace": layers.count("dense"), "num_nextn_predict_layers": model.mtp_depth}
        out |= {"moe_layer_freq": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc"}
        out |= _give(model.moe, SIGMOID_MOE) if model.moe else {}
    elif a.kind == "gqa":
        out |= _give(a, GROUPED)
        if kind == "qwen3_moe" and model.moe:
            out |= _give(model.moe, SOFTMAX_MOE) | {"decoder_sparse_step": 1}
            out |= {"mlp_only_layers": [i for i, ff in enumerate(layers) if ff == "dense"]}
    if kind != "qwen2":
        out["attention_bias"] = False
    said, meant = (config.to_json(m) for m in (_essence(read(out)), _essence(model)))
    if lost := config.diff(meant, said):
        what = "; ".join(f"{place} {ours!r} becomes {theirs!r}" for place, ours, theirs in lost)
        raise ConfigError(f"the {kind} format cannot hold this model: {what}")
    return out


def _refuse(hf, kind: Family) -> None:
    for name, allowed in ONLY.items():
        if hf.get(name) is not None and hf[name] not in allowed:
            raise ConfigError(f"{name} {hf[name]!r} is not supported; only {' or '.join(map(repr, allowed))} is")
    method = (hf.get("quantization_config") or {}).get("quant_method")
    if method not in (None, "fp8"):
        raise ConfigError(f"quantization_config.quant_method {method!r} is not supported; 'fp8' and no quantisation are")
    if set(hf.get("layer_types") or ()) - {"full_attention"}:
        raise ConfigError(f"layer_types {sorted(set(hf['layer_types']))} are not supported; 'full_attention' is")
    first = (hf.get("max_window_layers") or 0) if kind != "qwen3_moe" else 0  # Qwen3-MoE applies the window to all its layers
    if hf.get("use_sliding_window") and hf.get("sliding_window") is not None and first < _need(hf, "num_hidden_layers"):
        raise ConfigError(f"sliding_window {hf['sliding_window']} is not supported; use_sliding_window must be false")


def _need(hf, name: str) -> Any:
    value = hf.get(name)
    if value is None and name not in DEFAULTS:
        raise ConfigError(f"config.json has no {name}")
    if not isinstance(value, int | float | None):
        raise ConfigError(f"config.json: {name} is {value!r}, which is not a number")
    return DEFAULTS[name] if value is None else value


def _take(hf, table: Mapping[str, str]) -> dict[str, Any]:
    return {ours: _need(hf, theirs) for ours, theirs in table.items()}


def _give(ours: Any, table: Mapping[str, str]) -> dict[str, Any]:
    return {theirs: getattr(ours, name) for name, theirs in table.items()}


def _grouped(hf, kind: Family) -> dict[str, Any]:
    heads = _need(hf, "num_attention_heads")
    plain = {"num_key_value_heads": heads, "head_dim": _need(hf, "hidden_size") // max(heads, 1)}
    given = {name: value for name, value in hf.items() if value is not None}
    extras = {"kind": "gqa", "qkv_bias": kind == "qwen2", "qk_norm": kind in ("qwen3", "qwen3_moe")}
    return _take(plain | given, GROUPED) | extras


def _softmax_moe(hf) -> dict[str, Any]:
    counts = {hf[name] for name in ("num_experts", "num_local_experts") if hf.get(name) is not None}
    if len(counts) > 1:
        raise ConfigError(f"num_experts and num_local_experts contradict each other: {counts}")
    either = {**hf, "num_experts": next(iter(counts), None), "norm_topk_prob": hf.get("norm_topk_prob") or False}
    return _take(either, SOFTMAX_MOE) | {"n_shared": 0, "scoring": "softmax", "bias": False}


def _layers(hf, kind: Family) -> list[Literal["dense", "moe"]]:
    """The feed-forward of each layer."""
    n = _need(hf, "num_hidden_layers")
    if kind == "deepseek_v3":
        return ["dense" if i < _need(hf, "first_k_dense_replace") else "moe" for i in range(n)]
    if kind == "qwen3_moe":
        dense, step = hf.get("mlp_only_layers") or (), _need(hf, "decoder_sparse_step")
        return ["dense" if i in dense or (i + 1) % step else "moe" for i in range(n)]
    return ["dense"] * n


def _dtype(hf) -> str:
    name = hf.get("torch_dtype") or hf.get("dtype") or "float32"
    if name not in DTYPES:
        raise ConfigError(f"torch_dtype {name!r} is not supported; {', '.join(DTYPES)} are")
    return DTYPES[name]


def _rope(hf, latent: bool) -> dict[str, Any]:
    said = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    if any(isinstance(value, Mapping) for value in said.values()):
        raise ConfigError(f"rope_parameters for each kind of layer ({', '.join(said)}) are not supported")
    said = {name: value for name, value in said.items() if value is not None}
    theta = said.pop("rope_theta", None) or hf.get("rope_theta") or 10_000.0
    named = [said.pop(name, "default") for name in ("rope_type", "type")]
    kind = next((name for name in named if name != "default"), "default")
    if said.pop("partial_rotary_factor", 1.0) != 1.0:
        raise ConfigError("rope_parameters.partial_rotary_factor is not supported; all channels of a head must turn")
    if kind == "default":
        table = {}
    elif kind == "yarn":
        factors = {} if latent else _no_mscale(_need(said, "factor"))
        given = said.keys() & factors
        if given and all(math.isclose(_need(said, name), factors[name], rel_tol=1e-6) for name in given):
            said = {name: value for name, value in said.items() if name not in factors} | NO_MSCALE
        table = YARN | _mscales(said)
    elif kind == "llama3":
        table = LLAMA3
    else:
        raise ConfigError(f"rope type {kind!r} is not supported; 'default', 'yarn' and 'llama3' are")
    if unknown := sorted(set(said) - set(table.values()) - set(MSCALES if kind == "yarn" else ())):
        raise ConfigError(f"rope_scaling.{unknown[0]} {said[unknown[0]]!r} is not supported with rope type {kind!r}")
    said = {"original_max_position_embeddings": hf.get("max_position_embeddings"), **said}
    return _take(said, table) | {"theta": theta, "scaling": "none" if kind == "default" else kind}


def _mscales(said: Mapping[str, Any]) -> dict[str, str]:
    """MSCALES, or nothing where both have their default. With one of them alone, DeepSeek's code and transformers differ."""
    pair = said.get("mscale", 1.0), said.get("mscale_all_dim", 0.0)
    if pair == (1.0, 0.0):
        return {}
    if "mscale" in said and all(pair):
        return MSCALES
    raise ConfigError(f"rope_scaling with mscale {pair[0]} and mscale_all_dim {pair[1]} is not supported; give both or neither")


def _no_mscale(factor: float) -> dict[str, float]:
    """How grouped attention under YaRN says that cos and sin are not multiplied by m = 0.1 ln(factor) + 1: transformers takes
    ``attention_factor`` in place of m and ignores ``attn_factor``, vLLM multiplies m by the latter and ignores the former.

    DeepSeek-R1-0528-Qwen3-8B has ``attn_factor`` 1/m alone. We compute what it says, as vLLM does; transformers
    multiplies by m.
    """
    return {"attention_factor": 1.0, "attn_factor": 1 / (0.1 * math.log(max(factor, 1)) + 1)}


def _scaling(rope: config.Rope, latent: bool) -> dict[str, Any] | None:
    if rope.scaling == "llama3":
        return _give(rope, LLAMA3) | {"rope_type": "llama3"}
    if rope.scaling == "yarn" and not latent and _give(rope, MSCALES) == NO_MSCALE:
        return _give(rope, YARN) | _no_mscale(rope.factor) | {"type": "yarn"}
    if rope.scaling == "yarn":
        return _give(rope, YARN | ({} if (rope.mscale, rope.mscale_all_dim) == (1, 0) else MSCALES)) | {"type": "yarn"}
    return None


def _feed_forwards(model: config.Model) -> list[str]:
    return [segment.ff for segment in model.segments for _ in range(segment.count)]


def _has_moe(model: config.Model) -> bool:
    return any(segment.ff == "moe" for segment in model.segments)


def _essence(model: config.Model) -> config.Model:
    """The Model without what a config.json does not decide: how it is computed, and settings that have no effect."""
    rope = model.rope
    if rope.scaling == "none":
        rope = config.Rope(rope.theta, rope.interleaved)
    elif rope.scaling == "llama3":
        rope = dataclasses.replace(rope, beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=0.0)
    else:
        rope = dataclasses.replace(rope, low_freq_factor=1.0, high_freq_factor=4.0)
    return dataclasses.replace(
        model,
        segments=tuple(config.Segment(ff, len(list(run))) for ff, run in itertools.groupby(_feed_forwards(model))),
        moe=model.moe if _has_moe(model) else None,
        rope=rope,
        dtype="float32",
        matmul_dtype="float32",
        remat="none",
    )
