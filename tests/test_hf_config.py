"""Released config.json files become the models they describe; what no Model can say is refused by name."""

import dataclasses

import jax.numpy as jnp
import pytest
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from r1jax import config
from r1jax.convert import hf_config, names
from r1jax.nn import rope

DEEPSEEK_V3 = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 129280,
}
QWEN3_30B_A3B = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN2_5_HALF_B = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
LLAMA_3_2_1B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
BF16 = {"init_std": 0.02, "param_dtype": "bfloat16"}
RELEASED = {
    "DeepSeek-V3": (
        DEEPSEEK_V3,
        dataclasses.replace(config.CONFIG_671B, **BF16, dtype="float32", matmul_dtype="float32", remat="none"),
    ),
    "Qwen3-30B-A3B": (
        QWEN3_30B_A3B,
        config.Model(
            vocab_size=151_936,
            d_model=2048,
            d_ff=6144,
            segments=(config.Segment("moe", 48),),
            attention=config.GQA(n_heads=32, n_kv_heads=4, head_dim=128, qk_norm=True),
            moe=config.MoE(n_experts=128, top_k=8, d_ff=768, n_shared=0, scoring="softmax", bias=False),
            rope=config.Rope(theta=1e6),
            **BF16,
        ),
    ),
    "Qwen2.5-0.5B": (
        QWEN2_5_HALF_B,
        config.Model(
            vocab_size=151_936,
            d_model=896,
            d_ff=4864,
            segments=(config.Segment("dense", 24),),
            attention=config.GQA(n_heads=14, n_kv_heads=2, head_dim=64, qkv_bias=True),
            rope=config.Rope(theta=1e6),
            tied=True,
            **BF16,
        ),
    ),
    "Llama-3.2-1B": (
        LLAMA_3_2_1B,
        config.Model(
            vocab_size=128_256,
            d_model=2048,
            d_ff=8192,
            segments=(config.Segment("dense", 16),),
            attention=config.GQA(n_heads=32, n_kv_heads=8, head_dim=64),
            rope=config.Rope(theta=500_000.0, scaling="llama3", factor=32.0, original_length=8192),
            norm_eps=1e-5,
            tied=True,
            **BF16,
        ),
    ),
}


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_file_is_read_and_written_again(name):
    hf, model = RELEASED[name]
    assert hf_config.read(hf) == model
    written = hf_config.write(model, hf)
    assert hf_config.read(written) == model
    kept = hf.keys() - {"auto_map", "quantization_config", "transformers_version"}
    assert {k: written.get(k) for k in kept} == {k: hf[k] for k in kept}
    assert not written.keys() & (hf.keys() - kept)
    assert hf_config.infer(model) == hf_config.family(hf) == hf["model_type"]


def test_the_names_of_deepseek_v3_are_as_released():
    tensors = {e.name: e.shape for e in names.entries(config.CONFIG_671B, "deepseek_v3")}
    assert len([name for name in tensors if ".experts." in name]) == 59 * 256 * 3
    for name, shape in {
        "model.layers.0.mlp.gate_proj.weight": (18432, 7168),
        "model.layers.2.self_attn.kv_a_proj_with_mqa.weight": (576, 7168),
        "model.layers.2.self_attn.kv_b_proj.weight": (32768, 512),
        "model.layers.3.self_attn.q_b_proj.weight": (24576, 1536),
        "model.layers.3.mlp.gate.e_score_correction_bias": (256,),
        "model.layers.60.mlp.experts.255.down_proj.weight": (7168, 2048),
        "model.layers.60.mlp.shared_experts.up_proj.weight": (2048, 7168),
        "model.layers.61.eh_proj.weight": (7168, 14336),
        "model.layers.61.shared_head.head.weight": (129280, 7168),
        "model.layers.61.mlp.experts.0.gate_proj.weight": (2048, 7168),
    }.items():
        assert tensors[name] == shape


YARN = DEEPSEEK_V3["rope_scaling"]
R1_0528_QWEN3_8B = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "attn_factor": 0.8782488562869419,
}  # fmt: skip
DEFAULTS = {name: value for name, value in YARN.items() if "mscale" not in name}


@pytest.mark.parametrize(
    "hf, changes, expected",
    [
        (QWEN2_5_HALF_B, {"torch_dtype": None, "dtype": "float16"}, {"param_dtype": "float32"}),
        (LLAMA_3_2_1B, {"num_key_value_heads": None, "head_dim": None}, {"attention": config.GQA(32, 32, 64)}),
        (LLAMA_3_2_1B, {"architectures": None}, {}),
        (LLAMA_3_2_1B, {"rope_scaling": None, "rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 3}},
         {"rope": config.Rope(theta=3.0)}),
        (LLAMA_3_2_1B, {"rope_scaling": {"type": "default"}, "partial_rotary_factor": 1.0}, {"rope": config.Rope(theta=5e5)}),
        *((QWEN3_30B_A3B, {"rope_scaling": R1_0528_QWEN3_8B | said},  # YaRN whose m is 1
           {"rope": config.Rope(1e6, scaling="yarn", factor=4.0, original_length=32768, mscale=1.0, mscale_all_dim=1.0)})
          for said in ({}, {"attention_factor": 1}, {"attention_factor": 1.0, "attn_factor": None})),
        (LLAMA_3_2_1B, {"rope_scaling": {"rope_type": "yarn", "factor": 4}},
         {"rope": config.Rope(theta=5e5, scaling="yarn", factor=4.0, original_length=131072)}),
        (DEEPSEEK_V3, {"model_type": "kimi_k2"}, {}),
        (DEEPSEEK_V3, {"num_nextn_predict_layers": None, "torch_dtype": "bfloat16"}, {"mtp_depth": 0}),
        (DEEPSEEK_V3, {"rope_interleave": False}, {"rope": dataclasses.replace(config.CONFIG_671B.rope, interleaved=False)}),
        (DEEPSEEK_V3, {"rope_scaling": DEFAULTS | {"mscale": 1}},
         {"rope": dataclasses.replace(config.CONFIG_671B.rope, mscale_all_dim=0.0)}),
        (DEEPSEEK_V3, {"head_dim": 64, "qk_head_dim": 192}, {}),
        (QWEN3_30B_A3B, {"num_experts": None, "num_local_experts": 128}, {}),
        (QWEN3_30B_A3B, {"num_hidden_layers": 5, "decoder_sparse_step": 2, "mlp_only_layers": [1]},
         {"segments": (config.Segment("dense", 3), config.Segment("moe", 1), config.Segment("dense", 1))}),
        (QWEN2_5_HALF_B, {"use_sliding_window": True}, {}),  # from layer 24 on, and there are 24
        (QWEN2_5_HALF_B, {"layer_types": ["full_attention"] * 24}, {}),
    ],
)  # fmt: skip
def test_other_ways_to_say_it(hf, changes, expected):
    assert hf_config.read(hf | changes) == dataclasses.replace(hf_config.read(hf), **expected)


@pytest.mark.parametrize(
    "hf, changes, message",
    [
        (LLAMA_3_2_1B, {"architectures": ["MistralForCausalLM"]}, "architecture 'MistralForCausalLM' is not supported"),
        (LLAMA_3_2_1B, {"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        (LLAMA_3_2_1B, {"architectures": None, "model_type": "gemma"}, "model_type 'gemma'"),
        (LLAMA_3_2_1B, {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        (LLAMA_3_2_1B, {"attention_bias": True}, "attention_bias True"),
        (LLAMA_3_2_1B, {"mlp_bias": True}, "mlp_bias True"),
        (LLAMA_3_2_1B, {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        (LLAMA_3_2_1B, {"rope_scaling": {"type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        (LLAMA_3_2_1B, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope type 'linear'"),
        (LLAMA_3_2_1B, {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
        (LLAMA_3_2_1B, {"rope_scaling": {"rope_type": "longrope"}}, "rope type 'longrope'"),
        (LLAMA_3_2_1B, {"rope_scaling": {"rope_type": "default", "type": "mrope"}}, "rope type 'mrope'"),
        (LLAMA_3_2_1B, {"rope_scaling": {"type": "default", "mrope_section": [16, 24]}}, "mrope_section"),
        (LLAMA_3_2_1B, {"rope_scaling": {"type": "yarn"}}, "config.json has no factor"),
        (LLAMA_3_2_1B, {"rope_scaling": None, "rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "full_attention"),
        (QWEN2_5_HALF_B, {"rope_scaling": DEFAULTS | {"attention_factor": 1.5}}, "attention_factor 1.5"),
        (QWEN3_30B_A3B, {"rope_scaling": R1_0528_QWEN3_8B | {"attn_factor": 1.0}}, "attn_factor 1.0"),
        (QWEN3_30B_A3B, {"rope_scaling": R1_0528_QWEN3_8B | {"attention_factor": 1.1}}, "attention_factor 1.1"),
        (DEEPSEEK_V3, {"rope_scaling": R1_0528_QWEN3_8B}, "attn_factor 0.8"),  # there mscale_all_dim is more than a quotient
        (QWEN2_5_HALF_B, {"rope_scaling": DEFAULTS | {"truncate": False}}, "truncate False"),
        (QWEN2_5_HALF_B, {"use_sliding_window": True, "max_window_layers": 12}, "sliding_window 32768"),
        (QWEN2_5_HALF_B, {"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        (QWEN3_30B_A3B, {"use_sliding_window": True, "sliding_window": 4096}, "sliding_window 4096"),
        (QWEN3_30B_A3B, {"num_local_experts": 64}, "num_local_experts"),
        (QWEN3_30B_A3B, {"hidden_size": None}, "config.json has no hidden_size"),
        (QWEN3_30B_A3B, {"num_experts": None}, "config.json has no num_experts"),
        (QWEN3_30B_A3B, {"hidden_size": "2048"}, "hidden_size is '2048'"),
        (QWEN3_30B_A3B, {"torch_dtype": "int8"}, "torch_dtype 'int8'"),
        (DEEPSEEK_V3, {"rope_scaling": DEFAULTS | {"mscale": 0.7}}, "mscale 0.7 and mscale_all_dim 0.0"),
        (DEEPSEEK_V3, {"rope_scaling": DEFAULTS | {"mscale_all_dim": 1.0}}, "mscale_all_dim 1.0"),
        (DEEPSEEK_V3, {"scoring_func": "softmax"}, "scoring_func 'softmax'"),
        (DEEPSEEK_V3, {"topk_method": "group_limited_greedy"}, "topk_method 'group_limited_greedy'"),
        (DEEPSEEK_V3, {"moe_layer_freq": 2}, "moe_layer_freq 2"),
        (DEEPSEEK_V3, {"num_nextn_predict_layers": 2}, "mtp_depth is 2"),
        (DEEPSEEK_V3, {"quantization_config": {"quant_method": "awq"}}, "quant_method 'awq'"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(hf, changes, message):
    with pytest.raises(config.ConfigError) as error:
        hf_config.read(hf | changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


MOE = (config.Segment("moe"),)
SOFTMAX = config.MoE(n_shared=0, scoring="softmax", bias=False)


@pytest.mark.parametrize(
    "changes, like, message",
    [
        ({"attention": config.GQA(qkv_bias=True, qk_norm=True)}, None, "attention.qkv_bias True becomes False"),
        ({"attention": config.MLA(), "segments": MOE, "moe": SOFTMAX}, None, "moe.bias False becomes True"),
        ({"attention": config.MLA(), "segments": (*MOE, config.Segment()), "moe": config.MoE()}, None, "segments"),
        ({"segments": MOE, "moe": SOFTMAX}, None, "attention.qk_norm False becomes True"),
        ({"rope": config.Rope(interleaved=True)}, None, "rope.interleaved True becomes False"),
        ({"rope": config.Rope(scaling="yarn", factor=4.0, mscale_all_dim=0.5, mscale=0.0)}, None, "give both or neither"),
        ({"mtp_depth": 1}, None, "mtp_depth 1 becomes 0"),
        ({}, QWEN2_5_HALF_B, "the qwen2 format cannot hold this model: attention.qkv_bias False becomes True"),
    ],
)  # fmt: skip
def test_a_model_that_a_family_cannot_say_is_refused(changes, like, message):
    with pytest.raises(config.ConfigError) as error:
        hf_config.write(config.Model(**changes), like)
    assert message in str(error.value)


def test_yarn_without_its_factor_is_said_to_every_engine():
    said = hf_config.write(hf_config.read(QWEN3_30B_A3B | {"rope_scaling": R1_0528_QWEN3_8B}))["rope_scaling"]
    assert said["attn_factor"] == pytest.approx(0.8782488562869419, rel=1e-12)  # vLLM's, by which it multiplies
    theirs = transformers.Qwen3MoeConfig(rope_scaling=dict(said), max_position_embeddings=131072)
    assert ROPE_INIT_FUNCTIONS["yarn"](theirs, "cpu")[1] == 1.0
    cos, _ = rope.angles(jnp.zeros((1, 1), jnp.int32), 8, hf_config.read(QWEN3_30B_A3B | {"rope_scaling": said}).rope)
    assert (cos == 1).all()


def test_settings_without_effect_do_not_stand_in_the_way():
    model = config.Model(segments=(config.Segment(), config.Segment()), dtype="bfloat16", remat="layer", moe=SOFTMAX)
    assert hf_config.read(hf_config.write(model)).segments == (config.Segment(count=2),)


def test_entries_name_what_a_family_has_no_tensor_for():
    model = config.Model(attention=config.GQA(qkv_bias=True))
    with pytest.raises(config.ConfigError, match="llama format and this model differ in attention/k_bias, attention/q_bias"):
        names.entries(model, "llama")
