"""Directories of safetensors and transformers load bit for bit on any mesh, and damaged ones are refused in one line."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import struct

import hf_reference
import jax
import ml_dtypes
import numpy as np
import pytest
import test_fp8
import torch
import transformers
from hub_server import COMMIT, serve
from safetensors.numpy import load_file, save_file

from r1jax import cli, config, loading, sharding
from r1jax.checkpoint import Checkpointer
from r1jax.config import ConfigError, Text
from r1jax.convert import fill, hf, hf_config, names
from r1jax.convert.tensors import INDEX, Tensors, read_header
from r1jax.data import tokenizer
from r1jax.models import decoder
from r1jax.params import ParamSpec

BFLOAT16, FP8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
BLOCK = (16, 16)
MESHES = {"1 device": config.Mesh(1, 1, 1, 1, 1), "8 devices": config.Mesh(1, 2, 2, 2, 1)}
QWEN3_MOE = transformers.Qwen3MoeConfig(
    vocab_size=48,
    hidden_size=16,
    intermediate_size=24,
    moe_intermediate_size=8,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    num_experts=4,
    num_experts_per_tok=2,
    mlp_only_layers=[0],
    dtype=torch.bfloat16,
)
DEEPSEEK = config.Model(
    vocab_size=48,
    d_model=40,
    d_ff=24,
    segments=(config.Segment("dense", 1), config.Segment("moe", 1)),
    attention=config.MLA(n_heads=2, q_rank=12, kv_rank=16, nope_dim=8, rope_dim=4, v_dim=6),
    moe=config.MoE(n_experts=2, top_k=1, d_ff=20),
    rope=config.Rope(interleaved=True),
    mtp_depth=1,
    param_dtype="bfloat16",
)


@pytest.fixture(scope="module")
def qwen3_moe(tmp_path_factory):
    """bfloat16 shards as transformers writes them."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("qwen3_moe")
    transformers.Qwen3MoeForCausalLM(QWEN3_MOE).bfloat16().save_pretrained(folder, max_shard_size="10KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture
def copy(qwen3_moe, tmp_path):
    return shutil.copytree(qwen3_moe, tmp_path / "copy")


def read(folder):
    """Every tensor, by the safetensors package."""
    return {name: x for file in folder.glob("*.safetensors") for name, x in load_file(file).items()}


def write(folder, tensors, hf_config, *, shards=3):
    """A released directory: an index, and shards whose count has six digits as R1's."""
    folder.mkdir(exist_ok=True)
    index = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:06}.safetensors"
        part = dict(list(tensors.items())[i::shards])
        save_file({name: np.ascontiguousarray(x) for name, x in part.items()}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps(hf_config))
    return folder


def rewrite(folder, change):
    """One file in place of the shards, with other tensors."""
    tensors = read(folder)
    change(tensors)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, folder / "model.safetensors")


def edit(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def deepseek():
    """bfloat16 tensors by released names, the module for multi-token prediction and its copies of the trunk's included."""
    rng, tensors = np.random.default_rng(1), {}
    for entry in names.entries(DEEPSEEK, "deepseek_v3"):
        drawn = rng.standard_normal(entry.shape).astype(np.float32 if entry.name.endswith("_bias") else BFLOAT16)
        tensors[entry.name] = tensors[entry.copy_of].copy() if entry.copy_of else drawn
    return tensors


def load(folder, mesh="1 device", param_dtype=None):
    """(parameters, what the load reported)."""
    opened, told = loading.open_model(str(folder)), []
    model = dataclasses.replace(opened.model, param_dtype=param_dtype or opened.model.param_dtype)
    where = sharding.param_shardings(decoder.specs(model), sharding.make_mesh(MESHES[mesh]), sharding.TRAIN)
    params = opened.load(decoder.specs(model), where, lambda done, total: told.append((done, total)))
    jax.tree.map(lambda x, s: np.testing.assert_equal(x.sharding.is_equivalent_to(s, x.ndim), True), params, where)
    return params, told


def assert_same(params, tensors, model, dtype=None, fused=False):
    """The parameters hold the tensors' very bits, after a cast to ``dtype``; a router's bias is always float32."""
    entries = [e for e in names.entries(model, hf_config.infer(model), fused) if not e.copy_of]
    expected = hf_reference.parameters(tensors, entries)
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    for (path, x), wanted in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(expected), strict=True):
        wanted = wanted.astype("float32" if "router_bias" in str(path) else dtype or wanted.dtype)
        assert x.dtype == wanted.dtype, path
        assert np.asarray(x).tobytes() == wanted.tobytes(), path


# -- Loads


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("param_dtype", ["bfloat16", "float32"])
def test_transformers_directory_loads_bit_for_bit(qwen3_moe, mesh, param_dtype):
    params, told = load(qwen3_moe, mesh, param_dtype)
    assert_same(params, read(qwen3_moe), loading.open_model(str(qwen3_moe)).model, param_dtype)
    total = sum(x.nbytes for x in read(qwen3_moe).values())
    assert [t for _, t in told] == [total] * len(told) and told[-1][0] == total
    assert [d for d, _ in told] == sorted(d for d, _ in told)


def test_fused_experts_are_the_experts(qwen3_moe, copy):
    def fuse(tensors):
        for layer in (1, 2):
            prefix = f"model.layers.{layer}.mlp.experts."
            gate, up, down = (
                np.stack([tensors.pop(f"{prefix}{e}.{name}_proj.weight") for e in range(4)]) for name in ("gate", "up", "down")
            )
            tensors[f"{prefix}gate_up_proj"], tensors[f"{prefix}down_proj"] = np.concatenate([gate, up], axis=1), down

    rewrite(copy, fuse)
    assert_same(load(copy, "8 devices")[0], read(qwen3_moe), loading.open_model(str(copy)).model)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_other_dtypes_are_cast_once(copy, dtype):
    rewrite(
        copy,
        lambda tensors: tensors.update(
            {n: np.random.default_rng(3).standard_normal(x.shape).astype(dtype) for n, x in tensors.items()}
        ),
    )
    assert_same(load(copy)[0], read(copy), loading.open_model(str(copy)).model, BFLOAT16)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("param_dtype", ["bfloat16", "float32"])
def test_fp8_blocks_with_ragged_edges(tmp_path, mesh, param_dtype):
    tensors, plain = deepseek(), deepseek()
    for name in list(tensors):
        if name.endswith("_proj.weight") or name.endswith("kv_a_proj_with_mqa.weight"):
            q, scale_inv = test_fp8.draw(*tensors[name].shape, BLOCK)
            tensors |= {name: q, f"{name}_scale_inv": scale_inv}
            plain[name] = test_fp8.dequantize(q, scale_inv, BLOCK)
    quantised = {"quant_method": "fp8", "weight_block_size": list(BLOCK)}
    folder = write(tmp_path / "r1", tensors, hf_config.write(DEEPSEEK) | {"quantization_config": quantised})
    assert tensors["model.layers.0.self_attn.kv_a_proj_with_mqa.weight"].shape == (20, 40)
    opened = loading.open_model(str(folder))
    assert opened.model == DEEPSEEK and opened.origin["quantization_config"] == quantised
    assert_same(load(folder, mesh, param_dtype)[0], plain, DEEPSEEK, param_dtype)


def test_multi_token_prediction_may_be_absent(tmp_path):
    trunk = {name: x for name, x in deepseek().items() if not name.startswith("model.layers.2.")}
    folder = write(tmp_path / "trunk", trunk, hf_config.write(DEEPSEEK))
    assert_same(load(folder)[0], trunk, dataclasses.replace(DEEPSEEK, mtp_depth=0))


def test_copies_of_the_trunk_may_be_absent_but_not_differ(tmp_path):
    tensors = deepseek()
    copied = tensors.pop("model.layers.2.embed_tokens.weight")
    folder = write(tmp_path / "r1", tensors, hf_config.write(DEEPSEEK))
    assert_same(load(folder)[0], tensors, DEEPSEEK)
    copied[-1, -1] += 1
    write(folder, tensors | {"model.layers.2.embed_tokens.weight": copied}, hf_config.write(DEEPSEEK))
    with pytest.raises(ConfigError, match="layers.2.embed_tokens.weight differs from model.embed_tokens.weight"):
        load(folder)


def test_large_arrays_are_filled_on_the_devices(tmp_path):
    """Those above the size up to which they are put together on the host: experts and a matrix on 4 devices."""
    mesh = sharding.make_mesh(config.Mesh(1, 2, 2, 1, 1))
    experts, table = (2, 2, 512, 1100), (514, 2048)
    assert np.prod(experts) * 2 / 4 > fill.SMALL and np.prod(table) * 4 / 2 > fill.SMALL
    specs = {
        "experts": ParamSpec(experts, ("layers", "experts", "embed", "mlp"), dtype="bfloat16"),
        "table": ParamSpec(table, ("vocab", "embed"), dtype="float32"),
    }
    rng = np.random.default_rng(4)
    tensors = {"table": rng.integers(0, 2**15, table, np.uint16).view(np.float16)}
    entries = [entry("table", table, names.Part(("table",), ()), table, names.rows("table"))]
    for i in np.ndindex(2, 2):
        tensors[f"e{i}"] = rng.standard_normal((1100, 512), np.float32)
        entries.append(entry(f"e{i}", (1100, 512), names.Part(("experts",), i), (512, 1100), names.linear("experts")))
    tensors["table"][~np.isfinite(tensors["table"])] = 0
    save_file(tensors, tmp_path / "model.safetensors")
    files = Tensors.open(tmp_path)
    nbytes = {name: info.nbytes for name, info in files.info.items()}
    where = sharding.param_shardings(specs, mesh, sharding.TRAIN)
    found = fill.fill(specs, where, entries, nbytes, lambda name, _, needed: files.read(name, needed), lambda *_: None)
    np.testing.assert_array_equal(np.asarray(found["table"]), tensors["table"].astype(np.float32))
    for i in np.ndindex(2, 2):
        expected = tensors[f"e{i}"].T.astype(BFLOAT16)
        np.testing.assert_array_equal(np.asarray(found["experts"][i]).view(np.uint16), expected.view(np.uint16))


def entry(name, shape, part, part_shape, layout):
    return names.Entry(name, shape, (part,), layout, (part_shape,))


# -- What is read


def test_opening_reads_no_weights(qwen3_moe, monkeypatch):
    def refuse(*_):
        raise AssertionError("weights are read")

    monkeypatch.setattr(os, "preadv", refuse)
    opened = loading.open_model(str(qwen3_moe))
    assert opened.origin == json.loads((qwen3_moe / "config.json").read_text())
    with pytest.raises(AssertionError, match="weights are read"):
        load(qwen3_moe)


OPEN = """
import sys, jax
from r1jax import config, loading, sharding
from r1jax.models import decoder
for name in sys.argv[2:]:
    try:
        opened = loading.open_model(name)
        print(opened.model.n_layers, opened.model.mtp_depth, opened.commit, flush=True)
        if sys.argv[1] == "load":
            mesh = sharding.make_mesh(config.Mesh(fsdp=1), jax.devices()[:1])
            specs = decoder.specs(opened.model)
            params = opened.load(specs, sharding.param_shardings(specs, mesh, sharding.TRAIN))
            print(float(abs(params["embed"]["table"]).sum()))
    except ValueError as error:
        print(error)
"""


def test_weights_on_the_hub_are_fetched_when_they_are_loaded(qwen3_moe, copy, tmp_path):
    """So what the config tells is refused, and what does not fit into memory, before the gigabytes are here."""
    rewrite(copy, lambda tensors: None)  # one file and no index
    edit(copy, architectures=["MistralForCausalLM"])
    folders = {"org/sharded": qwen3_moe, "org/unsupported": copy}
    with serve() as server:
        for name, folder in folders.items():
            server.repos[name] = {file.name: file.read_bytes() for file in folder.iterdir()}
        said = server.run(tmp_path, OPEN, "open", *folders)
        assert said[0] == f"3 0 {COMMIT}" and "architecture 'MistralForCausalLM' is not supported" in said[1]
        fetched = server.downloads()
        assert "model.safetensors.index.json" in fetched and not [f for f in fetched if f.endswith(".safetensors")]
        said = server.run(tmp_path, OPEN, "load", "org/sharded@main")
        assert [f.endswith(".safetensors") for f in server.downloads()] == [True] * 3
    table = read(qwen3_moe)[hf.EMBEDDING].astype(np.float32)
    assert float(said[1]) == pytest.approx(abs(table).sum(), rel=1e-2)


def test_a_model_is_announced_as_it_will_be_found(qwen3_moe, tmp_path):
    assert hf.announce(qwen3_moe)[1] == hf.open_directory(qwen3_moe).model
    said = json.dumps(hf_config.write(DEEPSEEK))
    kept = {"with": deepseek(), "without": {n: x for n, x in deepseek().items() if not n.startswith("model.layers.2.")}}
    for name, tensors in kept.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(said)
        save_file(tensors, folder / "model.safetensors")
        assert hf.announce(folder)[1] is None  # whether the module is there shows in the tensors' names
        (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "model.safetensors")}))
        assert hf.announce(folder)[1] == hf.open_directory(folder).model
        assert hf.announce(folder)[1].mtp_depth == (name == "with")


def test_only_bytes_that_are_needed_are_read(tmp_path):
    whole = np.arange(4 * 6 * 10, dtype=np.float32).reshape(4, 6, 10)
    save_file({"before": np.zeros(3, np.float32), "x": whole}, tmp_path / "model.safetensors")

    def check(needed, expected_bytes):
        tensors = Tensors.open(tmp_path)
        found = tensors.read("x", lambda x: [x[i] for i in needed])
        for i in needed:
            np.testing.assert_array_equal(found[i], whole[i])
        assert tensors.bytes_read == expected_bytes

    check([np.s_[2]], 240)  # an expert
    check([np.s_[0, 1:3]], 80)  # rows
    check([np.s_[0, 1:3], np.s_[0, 2:4], np.s_[3]], 120 + 240)  # what overlaps is read once
    check([np.s_[1, :, 0:5]], 5 * 40 + 20)  # columns: from the first to the last byte
    check([], 0)
    check([np.s_[[2]]], 960)  # a copy says nothing about where it was taken from: all of it


def test_a_process_reads_what_its_devices_hold(copy):
    """As a process with the first of 8 devices would."""

    class First:
        def __init__(self, sharding):
            self.sharding = sharding

        def addressable_devices_indices_map(self, shape):
            return dict(list(self.sharding.addressable_devices_indices_map(shape).items())[:1])

    tensors = Tensors.open(copy)
    checkpoint = hf.open_directory(copy)
    specs = decoder.specs(checkpoint.model)
    where = sharding.param_shardings(specs, sharding.make_mesh(config.Mesh(1, 1, 4, 2, 1)), sharding.TRAIN)
    gate, embed = specs["segments"][1]["ff"]["gate"], specs["embed"]["table"]
    stacks = {
        "segments/1/ff/gate": fill.Stack(gate, First(where["segments"][1]["ff"]["gate"])),
        "embed/table": fill.Stack(embed, First(where["embed"]["table"])),
    }
    for entry in checkpoint.entries:
        if entry.name.endswith("experts.3.gate_proj.weight") or entry.name == hf.EMBEDDING:
            fill.read_pieces(entry, stacks, lambda name, _, needed: tensors.read(name, needed))
    # Half the rows of the embedding, of the last only the four channels that are held; and nothing of the fourth expert.
    embedding = (24 * 16 - 12) * 2
    assert tensors.bytes_read == embedding
    for entry in checkpoint.entries:
        if entry.name.endswith("experts.0.gate_proj.weight"):
            fill.read_pieces(entry, stacks, lambda name, _, needed: tensors.read(name, needed))
    assert tensors.bytes_read == embedding + 2 * 8 * 16 * 2 / 2  # half of the first expert of two layers


def test_token_ids_can_be_scored_without_a_tokenizer(qwen3_moe):
    opened = loading.open_model(str(qwen3_moe))
    with pytest.raises(ConfigError, match="holds no tokenizer.json"):
        _ = opened.tokenizer


def test_a_run_keeps_where_it_came_from_and_loads_in_another_dtype(qwen3_moe, tmp_path):
    opened = loading.open_model(str(qwen3_moe))
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(config.to_json(config.SFT(init="released"))))
    loading.describe(run, opened.model, Text(), tokenizer.byte_tokenizer(), opened.origin)
    with contextlib.closing(Checkpointer(run / "checkpoints")) as checkpoints:
        checkpoints.save(1, {"params": load(qwen3_moe)[0]}, {}, None)
    assert loading.open_model(str(run)).origin == opened.origin
    assert_same(load(run, param_dtype="float32")[0], read(qwen3_moe), opened.model, "float32")


# -- What is refused


def cut(folder):
    os.truncate(folder / "model-00002-of-00003.safetensors", 3000)


def flip(folder):
    file = folder / "model-00002-of-00003.safetensors"
    data = bytearray(file.read_bytes())
    data[data.index(b"BF16")] ^= 1
    file.write_bytes(data)


def lose(folder):
    (folder / "model-00002-of-00003.safetensors").unlink()


def lose_and_have_no_index(folder):
    lose(folder)
    (folder / "model.safetensors.index.json").unlink()


def give_byte_tokenizer(folder):
    tokenizer.byte_tokenizer().save(folder)


def untied(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["lm_head.weight"][0, 0] += 1


def tie_wrongly(folder):
    edit(folder, tie_word_embeddings=True)
    rewrite(folder, untied)


def set_expert(dtype):
    name = "model.layers.1.mlp.experts.0.up_proj.weight"
    return lambda folder: rewrite(folder, lambda tensors: tensors.update({name: tensors[name].astype(dtype)}))


def drop(folder):
    rewrite(folder, lambda tensors: [tensors.pop(f"model.layers.1.mlp.experts.{e}.up_proj.weight") for e in (0, 3)])


def add(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(32, np.float32)}))


REFUSED = {
    "cut": (cut, "model-00002-of-00003.safetensors is damaged or was cut short"),
    "flipped": (flip, "model-00002-of-00003.safetensors is damaged or was cut short (tensor "),
    "shard missing": (lose, "model-00002-of-00003.safetensors is missing"),
    "shard missing, no index": (lose_and_have_no_index, "model-00002-of-00003.safetensors is missing"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "config not JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
    "index not JSON": (
        lambda folder: (folder / "model.safetensors.index.json").write_text("{}"),
        "model.safetensors.index.json is damaged",
    ),
    "tokenizer too large": (give_byte_tokenizer, "tokenizer has 262 entries and model.embed_tokens.weight 48"),
    "other vocabulary": (
        lambda folder: edit(folder, vocab_size=64),
        "model.embed_tokens.weight is [48, 16], not [64, 16]",
    ),
    "architecture": (
        lambda folder: edit(folder, architectures=["MixtralForCausalLM"]),
        "config.json: architecture 'MixtralForCausalLM' is not supported",
    ),
    "more layers": (lambda folder: edit(folder, num_hidden_layers=4), "model.layers.3.input_layernorm.weight is missing"),
    "tensors missing": (drop, "model.layers.*.mlp.experts.*.up_proj.weight is missing (2 tensors, the first model.layers.1."),
    "unexpected": (add, "model.layers.0.self_attn.q_proj.bias is unexpected"),
    "heads that are not tied": (tie_wrongly, "lm_head.weight differs from model.embed_tokens.weight"),
    "dtype": (set_expert(np.float64), "model.layers.1.mlp.experts.0.up_proj.weight has dtype F64"),
    "FP8 without a block size": (set_expert(FP8), "experts.0.up_proj.weight is F8_E4M3, but"),
    "GPTQ": (lambda folder: edit(folder, quantization_config={"quant_method": "gptq"}), "quant_method 'gptq' is not supported"),
    "FP8 per tensor": (
        lambda folder: edit(folder, quantization_config={"quant_method": "fp8"}),
        "weight_block_size None is not supported",
    ),
    "no weights": (lambda folder: [f.unlink() for f in folder.glob("*.safetensors*")], "holds no .safetensors file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_told_in_one_line(copy, tmp_path, case):
    damage, told = REFUSED[case]
    assert len(list(copy.glob("*.safetensors"))) == 3
    damage(copy)
    np.save(tmp_path / "in.npy", np.arange(4, dtype=np.int32)[None])
    words = ["score", "--model", str(copy), "--tokens", str(tmp_path / "in.npy"), "--out", str(tmp_path / "out.npz")]
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        assert cli.main(words) == 2
    line = stderr.getvalue()
    assert line.count("\n") == 1 and len(line) < 1000, line
    assert told in line and str(copy) in line


def test_flipped_bits_of_a_header_show(tmp_path):
    """Either the file is refused by its name, or a tensor has another name, which opening a directory refuses."""
    file = tmp_path / "model.safetensors"
    save_file({"norm.weight": np.ones(3, np.float32), "q.weight": np.ones((2, 5), BFLOAT16)}, file)
    data = file.read_bytes()
    sound, header = read_header(file), 8 + struct.unpack("<Q", data[:8])[0]
    for bit in range(0, 8 * header, 3):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        try:
            found = read_header(file)
        except ConfigError as error:
            assert re.match(rf"{re.escape(str(file))} is damaged or was cut short \(.+\); download it again", str(error))
        else:
            assert found.keys() != sound.keys() or found == sound and flipped[bit // 8 : bit // 8 + 1].isspace(), bit
    file.write_bytes(data)
    for size in (*range(header + 3), len(data) - 1):
        file.write_bytes(data[:size])
        with pytest.raises(ConfigError, match="damaged or was cut short"):
            read_header(file)
    file.write_bytes(data + b"\0")
    with pytest.raises(ConfigError, match="damaged or was cut short"):
        read_header(file)


@pytest.mark.parametrize(
    ("a", "b"), [((0, 8), (4, 12)), ((0, 8), (12, 20)), ((4, 12), (12, 20)), ((0, 8), (8, 12))]
)  # overlapping, apart, begun late, too short
def test_tensors_that_do_not_lie_one_after_the_other_are_refused(tmp_path, a, b):
    entries = {name: {"dtype": "F32", "shape": [2], "data_offsets": offsets} for name, offsets in (("a", a), ("b", b))}
    header = json.dumps(entries).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(b[1]))
    with pytest.raises(ConfigError, match=r"model.safetensors is damaged or was cut short \(tensor [ab], F32 of shape"):
        Tensors.open(tmp_path)


def test_a_tensor_of_two_files_is_refused(tmp_path):
    for i in (1, 2):
        save_file({"x": np.ones(2, np.float32)}, tmp_path / f"model-0000{i}-of-00002.safetensors")
    with pytest.raises(
        ConfigError, match="model-00002-of-00002.safetensors: tensor x is in model-00001-of-00002.safetensors too"
    ):
        Tensors.open(tmp_path)


def test_an_index_cannot_name_files_elsewhere(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../secret.safetensors"}}))
    with pytest.raises(ConfigError, match="not in its directory"):
        Tensors.open(tmp_path)
