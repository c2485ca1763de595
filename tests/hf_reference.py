"""transformers' models with our weights: an independent implementation of every family.

The tables name each of our arrays and the tensor of theirs that holds the same numbers, a layer at a time.
"""

from __future__ import annotations

import numpy as np
import torch
import transformers

from r1jax import config

# Ours below a layer -> (theirs below model.layers.N, how). "linear" is a kernel in -> out, stored out x in.
ATTENTION = {
    "attention/q": ("self_attn.q_proj.weight", "linear"),
    "attention/k": ("self_attn.k_proj.weight", "linear"),
    "attention/v": ("self_attn.v_proj.weight", "linear"),
    "attention/o": ("self_attn.o_proj.weight", "linear from heads"),
    "attention/q_bias": ("self_attn.q_proj.bias", "flat"),
    "attention/k_bias": ("self_attn.k_proj.bias", "flat"),
    "attention/v_bias": ("self_attn.v_proj.bias", "flat"),
    "attention/q_norm": ("self_attn.q_norm.weight", "same"),
    "attention/k_norm": ("self_attn.k_norm.weight", "same"),
}
LATENT = {
    "attention/q": ("self_attn.q_proj.weight", "linear"),
    "attention/q_a": ("self_attn.q_a_proj.weight", "linear"),
    "attention/q_norm/scale": ("self_attn.q_a_layernorm.weight", "same"),
    "attention/q_b": ("self_attn.q_b_proj.weight", "linear"),
    "attention/kv_a": ("self_attn.kv_a_proj_with_mqa.weight", "linear"),
    "attention/kv_norm/scale": ("self_attn.kv_a_layernorm.weight", "same"),
    "attention/k_b": ("self_attn.kv_b_proj.weight", "head by head, before v_b"),
    "attention/v_b": ("self_attn.kv_b_proj.weight", "head by head, after k_b"),
    "attention/o": ("self_attn.o_proj.weight", "linear from heads"),
}
REST = {
    "attention_norm/scale": ("input_layernorm.weight", "same"),
    "ff_norm/scale": ("post_attention_layernorm.weight", "same"),
}
DENSE = {f"ff/{name}": (f"mlp.{name}_proj.weight", "linear") for name in ("gate", "up", "down")}
SPARSE = {
    "ff/router": ("mlp.gate.weight", "linear"),
    "ff/router_bias": ("mlp.gate.e_score_correction_bias", "same"),
    "ff/gate": ("mlp.experts.gate_up_proj", "expert by expert, before up"),
    "ff/up": ("mlp.experts.gate_up_proj", "expert by expert, after gate"),
    "ff/down": ("mlp.experts.down_proj", "experts"),
    **{f"ff/shared/{name}": (f"mlp.shared_experts.{name}_proj.weight", "linear") for name in ("gate", "up", "down")},
}
TOP = {
    "embed/table": ("model.embed_tokens.weight", "same"),
    "final_norm/scale": ("model.norm.weight", "same"),
    "head/kernel": ("lm_head.weight", "linear"),
}


def _flatten(tree: dict, prefix: str = "") -> dict[str, np.ndarray]:
    out = {}
    for name, value in tree.items():
        out |= _flatten(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: np.asarray(value)}
    return out


def _state(arrays: dict[str, np.ndarray], table: dict[str, tuple[str, str]], prefix: str) -> dict[str, np.ndarray]:
    """Their tensors for our arrays; a KeyError names an array of ours that no table knows."""
    out: dict[str, np.ndarray] = {}
    for name, x in arrays.items():
        theirs, how = table[name]
        theirs = prefix + theirs
        if how == "linear":
            out[theirs] = x.reshape(x.shape[0], -1).T
        elif how == "linear from heads":
            out[theirs] = x.reshape(-1, x.shape[-1]).T
        elif how == "flat":
            out[theirs] = x.reshape(-1)
        elif how == "experts":
            out[theirs] = x.transpose(0, 2, 1)
        elif how.startswith("head by head, before"):  # [rank, heads, nope] and [rank, heads, v]
            both = np.concatenate([x, arrays["attention/v_b"]], axis=-1)
            out[theirs] = both.reshape(both.shape[0], -1).T
        elif how.startswith("expert by expert, before"):
            out[theirs] = np.concatenate([x, arrays["ff/up"]], axis=-1).transpose(0, 2, 1)
        elif how == "same":
            out[theirs] = x
    return out


def state_dict(params: dict, model: config.Model) -> dict[str, torch.Tensor]:
    """Their tensors by name for our parameters; the module for multi-token prediction has none there."""
    attention = LATENT if model.attention.kind == "mla" else ATTENTION
    out = _state(_flatten({k: v for k, v in params.items() if k not in ("segments", "mtp")}), TOP, "")
    layer = 0
    for segment, stacked in zip(model.segments, params["segments"], strict=True):
        table = attention | REST | (DENSE if segment.ff == "dense" else SPARSE)
        arrays = _flatten(stacked)
        for i in range(segment.count):
            out |= _state({name: x[i] for name, x in arrays.items()}, table, f"model.layers.{layer}.")
            layer += 1
    return {name: torch.tensor(np.ascontiguousarray(x)) for name, x in out.items()}


def configuration(kind: str, model: config.Model) -> transformers.PreTrainedConfig:
    """transformers' ``{kind}Config`` of our model."""
    a, m = model.attention, model.moe
    rope = {"rope_theta": model.rope.theta, "rope_type": "default"}
    if model.rope.scaling == "yarn":
        rope |= {name: getattr(model.rope, name) for name in ("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")}
        rope |= {"rope_type": "yarn", "original_max_position_embeddings": model.rope.original_length}
    elif model.rope.scaling == "llama3":
        rope |= {name: getattr(model.rope, name) for name in ("factor", "low_freq_factor", "high_freq_factor")}
        rope |= {"rope_type": "llama3", "original_max_position_embeddings": model.rope.original_length}
    settings = {
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": model.d_ff,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": a.n_heads,
        "num_key_value_heads": a.n_heads if a.kind == "mla" else a.n_kv_heads,
        "rms_norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tied,
        "rope_parameters": rope,
        "max_position_embeddings": int(model.rope.original_length * model.rope.factor),
        "attn_implementation": "eager",
    }
    if a.kind == "mla":
        settings |= {"q_lora_rank": a.q_rank, "kv_lora_rank": a.kv_rank, "v_head_dim": a.v_dim}
        settings |= {"qk_nope_head_dim": a.nope_dim, "qk_rope_head_dim": a.rope_dim, "rope_interleave": model.rope.interleaved}
    else:
        settings["head_dim"] = a.head_dim
    if m is not None:
        settings |= {"moe_intermediate_size": m.d_ff, "num_experts_per_tok": m.top_k, "norm_topk_prob": m.renormalize}
    if m is not None and m.scoring == "sigmoid":
        settings |= {"n_routed_experts": m.n_experts, "n_shared_experts": m.n_shared, "routed_scaling_factor": m.scale}
        settings |= {"n_group": m.n_groups, "topk_group": m.top_groups, "first_k_dense_replace": model.segments[0].count}
    elif m is not None:
        settings["num_experts"] = m.n_experts
    return getattr(transformers, f"{kind}Config")(**settings)


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
