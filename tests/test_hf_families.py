"""A random transformers model of every family gives the same logits here, under both namings of fields and tensors."""

import dataclasses
import json
import math

import hf_reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from random_models import TOKENS, jit
from safetensors.numpy import load_file
from transformers.modeling_layers import MtpLayer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek

from r1jax import config
from r1jax.convert import hf_config, names
from r1jax.models import decoder
from r1jax.nn import mla, moe, rope

pytestmark = pytest.mark.parity

TOLERANCE = 2e-4

SIZES = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"attn_implementation": "eager", "max_position_embeddings": 128, "num_key_value_heads": 2}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 12, "norm_topk_prob": True}
LATENT = {"num_key_value_heads": 4, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6}
LATENT |= {"n_routed_experts": 8, "first_k_dense_replace": 1, "num_mtp_layers": 0, "eos_token_id": [1, 2]}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
YARN |= {"beta_fast": 32.0, "beta_slow": 1.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "original_max_position_embeddings": 32}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
VARIANTS = {
    "DeepSeek-V3": transformers.DeepseekV3Config(
        **SIZES | EXPERTS | LATENT,
        q_lora_rank=12,
        n_group=4,
        topk_group=2,
        n_shared_experts=1,
        routed_scaling_factor=2.5,
        rope_parameters=YARN | {"mscale": 1.0, "mscale_all_dim": 0.7, "beta_fast": 16},
    ),
    "Moonlight": transformers.DeepseekV3Config(
        **SIZES | EXPERTS | LATENT,
        q_lora_rank=None,
        n_group=1,
        topk_group=1,
        n_shared_experts=2,
        routed_scaling_factor=2.446,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
    ),
    "DeepSeek, half-split and not renormalised": transformers.DeepseekV3Config(
        **SIZES | LATENT | EXPERTS | {"norm_topk_prob": False, "first_k_dense_replace": 0},
        q_lora_rank=12,
        n_group=2,
        topk_group=1,
        routed_scaling_factor=1.5,
        rope_interleave=False,
        rope_parameters=YARN | {"beta_fast": 1.0, "beta_slow": 1.0},
        tie_word_embeddings=True,
    ),
    "Qwen2": transformers.Qwen2Config(**SIZES | {"num_key_value_heads": 1}, rope_theta=1e6),
    "Qwen2.5 with YaRN": transformers.Qwen2Config(
        **SIZES,
        tie_word_embeddings=True,
        rope_parameters=YARN | {"rope_theta": 100.0, "original_max_position_embeddings": 1024},
    ),
    "Qwen3": transformers.Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True),
    "Qwen3-MoE": transformers.Qwen3MoeConfig(**SIZES | EXPERTS, num_experts=8, head_dim=8, mlp_only_layers=[1]),
    "Qwen3-MoE in steps": transformers.Qwen3MoeConfig(
        **SIZES | EXPERTS | {"norm_topk_prob": False}, num_experts=4, decoder_sparse_step=2
    ),
    "Llama 3": transformers.LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "SmolLM2": transformers.LlamaConfig(**SIZES, head_dim=8, tie_word_embeddings=True, rope_theta=1e5, rms_norm_eps=1e-5),
}
MOE = [name for name, c in VARIANTS.items() if c.model_type in ("deepseek_v3", "qwen3_moe")]


@dataclasses.dataclass
class Reference:
    theirs: torch.nn.Module
    hf: dict
    """config.json as transformers 5 saves it."""
    model: config.Model
    params: dict
    """Ours, of ``theirs``."""
    logits: np.ndarray
    routes: list[np.ndarray]
    """int[B T, K] for each MoE layer, sorted."""
    files: dict[str, np.ndarray]
    """The tensors as transformers saves them."""


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """Makes a variant's Reference, once."""
    made = {}

    def make(variant: str) -> Reference:
        if variant not in made:
            settings = VARIANTS[variant]
            kind = transformers.AutoModelForCausalLM._model_mapping[type(settings)]
            theirs = kind(settings).eval()
            # small embeddings and latents, so that the eps of a norm shows
            hf_reference.draw(theirs, embed_tokens=0.05, **{"kv_a_proj": 0.005} if variant == "Moonlight" else {})
            folder = tmp_path_factory.mktemp("saved")
            theirs.save_pretrained(folder)
            hf = json.loads((folder / "config.json").read_text())
            model = hf_config.read(hf)
            tensors = {name: x.numpy() for name, x in theirs.state_dict().items()}
            params = hf_reference.parameters(tensors, names.entries(model, hf_config.family(hf), fused=True))
            routes = []
            for name, module in theirs.named_modules():
                if name.endswith("mlp.gate"):  # a router's forward gives logits, weights and choices
                    module.register_forward_hook(lambda _module, _inputs, out: routes.append(np.sort(out[2].numpy())))
            logits, files = hf_reference.logits(theirs, TOKENS), load_file(folder / "model.safetensors")
            made[variant] = Reference(theirs, hf, model, params, logits, routes, files)
        return made[variant]

    return make


def ours(params, model):
    @jit
    def logits(params):
        positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
        hidden, aux, _ = decoder.forward(params, TOKENS, positions, jnp.ones_like(TOKENS), model=model)
        return hidden @ decoder.head_kernel(params), aux.routes

    return jax.tree.map(np.asarray, logits(params))


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_choices_are_those_of_transformers(references, variant):
    r = references(variant)
    logits, routes = ours(r.params, r.model)
    assert r.logits.std() > 0.5
    np.testing.assert_allclose(logits, r.logits, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(jax.nn.log_softmax(logits), jax.nn.log_softmax(r.logits), atol=TOLERANCE, rtol=0)
    chosen = [layer for segment in routes if segment is not None for layer in segment]
    assert len(chosen) == len(r.routes) == sum(s.count for s in r.model.segments if s.ff == "moe")
    for layer, expected in zip(chosen, r.routes, strict=True):
        np.testing.assert_array_equal(np.sort(layer.reshape(expected.shape)), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_entries_are_exactly_the_tensors_of_both_namings(references, variant):
    r = references(variant)
    state = {name: x.numpy() for name, x in r.theirs.state_dict().items() if not (r.model.tied and name == "lm_head.weight")}
    family = hf_config.family(r.hf)
    for tensors, fused in ((state, True), (r.files, False)):
        entries = names.entries(r.model, family, fused)
        assert {entry.name: entry.shape for entry in entries} == {name: x.shape for name, x in tensors.items()}
        assert len(entries) == len(tensors)
        for entry in entries:
            parts = entry.split(tensors[entry.name])
            assert [part.shape for part in parts] == list(entry.part_shapes)
            assert all(np.shares_memory(part, tensors[entry.name]) for part in parts)
            np.testing.assert_array_equal(entry.join(parts), tensors[entry.name])
        for name, x in hf_reference.tensors(r.params, entries).items():
            np.testing.assert_array_equal(x, tensors[name])


@pytest.mark.parametrize("variant", VARIANTS)
def test_released_fields_say_the_same_to_transformers_and_to_us(references, variant):
    r = references(variant)
    for like in (r.hf, None):
        if like is None and hf_config.infer(r.model) != hf_config.family(r.hf):
            continue  # of two families that compute the same the other is written
        written = hf_config.write(r.model, like)
        assert not written.keys() & {"rope_parameters", "dtype", "num_local_experts"}
        assert hf_config.read(written) == r.model
        again = json.loads(type(r.theirs.config).from_dict(written).to_json_string())
        forgotten = {"bos_token_id", "eos_token_id", "max_position_embeddings"} if like is None else set()
        forgotten |= {"decoder_sparse_step", "mlp_only_layers"}  # two ways to say one thing
        again["rope_parameters"].pop("type", None)
        assert {name: again.get(name) for name in r.hf.keys() - forgotten} == {k: r.hf[k] for k in r.hf.keys() - forgotten}


@pytest.fixture(scope="module")
def predicting(references):
    """(The trunk's Reference, our model and parameters with a module for multi-token prediction, its tensors, its logits)."""
    trunk = references("DeepSeek-V3")
    decoder_ = trunk.theirs.model
    theirs = MtpLayer(trunk.theirs.config, deepseek.DeepseekV3DecoderLayer, deepseek.DeepseekV3RMSNorm, layer_idx=2).eval()
    hf_reference.draw(theirs, seed=1)
    tokens, t = torch.tensor(TOKENS, dtype=torch.long), TOKENS.shape[1]
    positions = torch.arange(t)[None]
    with torch.no_grad():
        hidden, ahead = decoder_(tokens).last_hidden_state, decoder_.embed_tokens(tokens.roll(-1, 1))
        out = theirs(
            inputs_embeds=ahead,
            previous_hidden_state=hidden,
            position_embeddings=decoder_.rotary_emb(hidden, positions),
            attention_mask=torch.full((t, t), -torch.inf).triu(1)[None, None],
            position_ids=positions,
            past_key_values=None,
        )
        logits = trunk.theirs.lm_head(out).numpy()
    tensors = {
        "model.layers.2." + name.replace("mtp_block.", "").replace("post_norm", "shared_head.norm"): x.numpy()
        for name, x in theirs.state_dict().items()
    }
    model = hf_config.read({**trunk.hf, "num_nextn_predict_layers": 1})
    entries = [e for e in names.entries(model, "deepseek_v3", fused=True) if e.copy_of is None]
    trunks = {name: x.numpy() for name, x in trunk.theirs.state_dict().items()}
    params = hf_reference.parameters(trunks | tensors, entries)
    assert {e.name for e in entries} == (trunks | tensors).keys()
    return model, params, logits


def ours_predicting(params, model):
    @jit
    def logits(params):
        positions, segments = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape), jnp.ones_like(TOKENS)
        hidden, _, _ = decoder.forward(params, TOKENS, positions, segments, model=model)
        hidden, _ = decoder.mtp(params, hidden, TOKENS, positions, segments, model=model)
        return hidden @ decoder.head_kernel(params)

    return np.asarray(logits(params))


@pytest.mark.parametrize("swapped", [False, True])
def test_multi_token_prediction_is_that_of_transformers(predicting, swapped):
    model, params, theirs = predicting
    if swapped:  # the hidden state's half of the projection first
        params = params | {"mtp": params["mtp"] | {"merge": np.roll(params["mtp"]["merge"], model.d_model, axis=0)}}
    difference = abs(ours_predicting(params, model) - theirs)[:, :-1].max()  # the last token has no successor
    assert theirs.std() > 0.5
    assert difference > 1 if swapped else difference < TOLERANCE


def test_the_trunks_embedding_and_head_are_copied_into_the_module(predicting):
    model, params, _ = predicting
    for tied in (False, True):
        entries = {e.name: e for e in names.entries(dataclasses.replace(model, tied=tied), "deepseek_v3")}
        copies = {e.name: e.copy_of for e in entries.values() if e.copy_of}
        head = "model.embed_tokens.weight" if tied else "lm_head.weight"
        assert copies == {
            "model.layers.2.embed_tokens.weight": "model.embed_tokens.weight",
            "model.layers.2.shared_head.head.weight": head,
        }
        tensors = hf_reference.tensors(params, list(entries.values()))
        for copy, original in copies.items():
            np.testing.assert_array_equal(tensors[copy], tensors[original])
            assert entries[copy].shape == tensors[copy].shape


# -- Wrong details


def router(params, x, settings, routes=None, *, best=2, excluded=-jnp.inf, biased_gates=False):
    """``moe.route`` again, right and in wrong ways."""
    scores = jax.nn.sigmoid(x @ params["router"])
    biased = scores + params["router_bias"]
    groups = biased.reshape(*x.shape[:2], settings.n_groups, -1)
    group_scores = jnp.sort(groups)[..., -best:].sum(-1)
    least = jnp.sort(group_scores)[..., -settings.top_groups, None]
    allowed = jnp.where((group_scores >= least)[..., None], groups, excluded).reshape(biased.shape)
    experts = jnp.argsort(-allowed)[..., : settings.top_k]
    gates = jnp.take_along_axis(biased if biased_gates else scores, experts, -1)
    return moe.Routing(experts, settings.scale * gates / gates.sum(-1, keepdims=True), scores)


def changed(settings, changes):
    """A frozen config with other values at dotted places."""
    for place, value in changes.items():
        name, _, rest = place.partition(".")
        value = changed(getattr(settings, name), {rest: value}) if rest else value
        settings = dataclasses.replace(settings, **{name: value})
    return settings


IN_COS_AND_SIN = rope.mscale(4.0, 1.0) / rope.mscale(4.0, 0.7)
WRONG = {
    "eps of the norms": ("DeepSeek-V3", {"norm_eps": 1e-5}),
    "eps of the norms, Llama": ("SmolLM2", {"norm_eps": 1e-6}),
    "halves instead of neighbours": ("DeepSeek-V3", {"rope.interleaved": False}),
    "neighbours instead of halves": ("Llama 3", {"rope.interleaved": True}),
    "no mscale in the softmax": (
        "DeepSeek-V3",
        {"rope.mscale": (IN_COS_AND_SIN - 1) / (0.1 * math.log(4.0)), "rope.mscale_all_dim": 0.0},
    ),
    "no mscale in cos and sin": ("DeepSeek-V3", {"rope.mscale": 0.7}),
    "no factor in cos and sin": ("Qwen2.5 with YaRN", {"rope.mscale_all_dim": 1.0}),
    "another ramp": ("Qwen2.5 with YaRN", {"rope.beta_fast": 16.0}),
    "no scaling of frequencies": ("Llama 3", {"rope.scaling": "none"}),
    "another theta": ("Qwen2", {"rope.theta": 1e4}),
    "no bias of queries, keys and values": ("Qwen2", {"attention.qkv_bias": False}),
    "no norm of queries and keys": ("Qwen3", {"attention.qk_norm": False}),
    "no bias in the choice of experts": ("DeepSeek-V3", {"moe.bias": False}),
    "no groups": ("DeepSeek-V3", {"moe.top_groups": 4}),
    "no scale of the gates": ("Moonlight", {"moe.scale": 1.0}),
    "no renormalising": ("Qwen3-MoE", {"moe.renormalize": False}),
    "renormalising": ("Qwen3-MoE in steps", {"moe.renormalize": True}),
    "sigmoid instead of softmax": ("Qwen3-MoE", {"moe.scoring": "sigmoid"}),
}
WRONG_ROUTERS = {
    "groups by their best expert": {"best": 1},
    "bias in the gates": {"biased_gates": True},
    "excluded experts at 0": {"excluded": 0.0},
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_setting_is_noticed(references, what):
    variant, changes = WRONG[what]
    r = references(variant)
    assert abs(ours(r.params, changed(r.model, changes))[0] - r.logits).max() > 2 * TOLERANCE


@pytest.mark.parametrize("what", [None, *WRONG_ROUTERS])
def test_a_wrong_router_is_noticed(references, what, monkeypatch):
    r = references("DeepSeek-V3")
    ff = r.params["segments"][1]["ff"]
    lower = -1.0 if what == "excluded experts at 0" else 0.0  # scores below 0 are what tells 0 from minus infinity
    ff = ff | {"router_bias": ff["router_bias"] + np.float32(lower)}  # the same for all, so no right choice changes
    monkeypatch.setattr(moe, "route", lambda *a: router(*a, **WRONG_ROUTERS.get(what, {})))
    params = r.params | {"segments": (r.params["segments"][0], r.params["segments"][1] | {"ff": ff})}
    difference = abs(ours(params, r.model)[0] - r.logits).max()
    assert difference > 2 * TOLERANCE if what else difference < TOLERANCE


def test_the_models_eps_in_the_latent_norms_is_noticed(references, monkeypatch):
    r = references("Moonlight")
    monkeypatch.setattr(mla, "LATENT_EPS", r.model.norm_eps)
    assert abs(ours(r.params, r.model)[0] - r.logits).max() > 2 * TOLERANCE


@pytest.mark.parametrize("first, second", [("mlp.gate_proj", "mlp.up_proj"), ("input_layernorm", "post_attention_layernorm")])
def test_a_wrong_name_is_noticed(references, first, second, monkeypatch):
    r = references("Llama 3")
    wrong = {
        name.replace(first, "?").replace(second, first).replace("?", second): x.numpy()
        for name, x in r.theirs.state_dict().items()
    }
    params = hf_reference.parameters(wrong, names.entries(r.model, "llama"))
    assert abs(ours(params, r.model)[0] - r.logits).max() > 2 * TOLERANCE


@pytest.mark.parametrize(
    "settings",
    [
        config.Rope(theta=500.0, scaling="llama3", factor=8.0, original_length=32, low_freq_factor=1.0, high_freq_factor=4.0),
        config.Rope(theta=500_000.0, scaling="llama3", factor=32.0, original_length=8192),
        config.Rope(scaling="yarn", factor=40.0, original_length=4096, mscale=1.0, mscale_all_dim=1.0),
        config.Rope(
            theta=1e6,
            scaling="yarn",
            factor=4.0,
            original_length=512,
            beta_fast=16,
            beta_slow=2,
            mscale=0.9,
            mscale_all_dim=0.4,
        ),
        config.Rope(scaling="yarn", factor=4.0, original_length=16),
    ],
)
def test_frequencies_are_those_of_transformers(settings):
    a = config.GQA(n_heads=4, n_kv_heads=4, head_dim=64)
    theirs = hf_reference.configuration("Llama", config.Model(d_model=256, attention=a, rope=settings))
    frequencies, factor = ROPE_INIT_FUNCTIONS[settings.scaling](theirs, "cpu")
    np.testing.assert_allclose(rope.inverse_frequencies(64, settings), frequencies.numpy(), rtol=1e-5)
    cos, _ = rope.angles(jnp.zeros((1, 1), jnp.int32), 64, settings)
    np.testing.assert_allclose(cos, factor, rtol=1e-6)
