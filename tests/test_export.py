"""Exported directories: what transformers makes of them, and that nothing is changed, lost or left half written."""

import dataclasses
import json
import os
import resource
import shutil

import fsspec
import hf_reference
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny
import torch
import transformers
from hub_server import Bucket
from random_models import FAMILIES, GQA, MLA, MOE, TOKENS, draw, jit
from safetensors.torch import load_file

from r1jax import cli, config, hub, loading, params, sharding
from r1jax.checkpoint import Checkpointer
from r1jax.convert import export, write
from r1jax.data.template import Template
from r1jax.data.tokenizer import byte_tokenizer
from r1jax.models import decoder
from r1jax.stages.export import export_step, plan_export

pytestmark = pytest.mark.parity
WITH_MTP = FAMILIES | {"DeepseekV3 with MTP": MLA}
ONE = sharding.make_mesh(config.Mesh(fsdp=1), jax.devices()[:1])


def write_directory(out, model, weights, dtype=None, origin=None, **options):
    export.write(export.plan(model, byte_tokenizer(), dtype, origin), weights, out, **options)
    return out


def tensors(directory):
    """Every tensor of a directory by name, as the safetensors library reads it."""
    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        found |= load_file(file)
    return found


def run_export(model, out, *options):
    return cli.main(["export", "--model", str(model), "--out", str(out), "--mesh.fsdp", "1", *options])


def cast(tree, model):
    """The tree in the dtypes that the model's parameters have."""
    return jax.tree.map(lambda x, s: x.astype(s.dtype), tree, params.abstract(decoder.specs(model)))


def same_bits(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# -- What transformers makes of it


@pytest.mark.parametrize("family", WITH_MTP)
def test_transformers_loads_every_tensor_of_it(family, tmp_path):
    model = WITH_MTP[family]
    weights = draw(model)
    write_directory(tmp_path / "out", model, weights, max_shard_bytes=20_000)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager", dtype=torch.float32
    )
    assert not report["missing_keys"] and not report["mismatched_keys"]
    own = {name for name in report["unexpected_keys"] if not name.startswith(f"model.layers.{model.n_layers}.")}
    assert not own and bool(report["unexpected_keys"]) == bool(model.mtp_depth)
    expected = hf_reference.build(family.split()[0], weights, dataclasses.replace(model, mtp_depth=0))
    assert abs(hf_reference.logits(theirs.eval(), TOKENS) - hf_reference.logits(expected, TOKENS)).max() < 1e-6
    shards = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))] and len(files) > 1
    assert sorted(set(shards["weight_map"].values())) == files
    assert shards["weight_map"].keys() == tensors(tmp_path / "out").keys()
    assert not any("gate_up_proj" in name for name in shards["weight_map"])  # engines have skipped fused experts silently


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a model made here, a mixture of experts with latent attention: (directory, model, weights of step 2)."""
    model = dataclasses.replace(tiny.MOE, attention=dataclasses.replace(tiny.MOE.attention, rope_dim=8))
    text = config.Text(tokenizer="bytes", template="r1-zero", system="Be brief.")
    path = tmp_path_factory.mktemp("runs") / "tiny"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config.to_json(config.SFT(model=model, text=text))))
    loading.describe(path, model, text, byte_tokenizer())
    checkpoints = Checkpointer(path / "checkpoints")
    for step in (1, 2):
        checkpoints.save(step, {"params": draw(model, step)}, {}, score=-step)
    checkpoints.close()
    return path, model, draw(model, 2)


def test_a_run_of_our_own_becomes_deepseek_v3(run, tmp_path, capsys):
    path, model, weights = run
    assert not model.rope.interleaved  # engines know the other order only: the channels must change places
    assert run_export(path, tmp_path / "out") == 0
    assert "KiB in" in capsys.readouterr().out
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    assert theirs.config.model_type == "deepseek_v3" and theirs.config.rope_interleave

    @jit
    def ours(weights):
        every = jnp.ones_like(TOKENS)
        positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
        return decoder.forward(weights, TOKENS, positions, every, model=model)[0] @ decoder.head_kernel(weights)

    expected = np.asarray(ours(weights))
    assert expected.std() > 0.5
    np.testing.assert_allclose(hf_reference.logits(theirs, TOKENS), expected, atol=2e-4, rtol=0)
    assert theirs.generation_config.eos_token_id == [1] and theirs.config.eos_token_id == 1


def test_another_engine_writes_prompts_as_in_training(run, tmp_path):
    path, _, _ = run
    assert run_export(f"{path}@1", tmp_path / "out") == 0
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    opened = loading.open_model(str(path))
    asked = [{"role": "user", "content": 'What is "two"\nplus two?'}]
    expected = Template(opened.text, opened.tokenizer)
    assert theirs.apply_chat_template(asked, tokenize=False) == expected.render(asked).text
    assert list(theirs.apply_chat_template(asked, return_dict=False)) == expected.encode(asked)[0]
    with_options = config.Text(template="{{ prompt }}{{ mood }}", template_options={"mood": "now!"})
    tokenizer = dataclasses.replace(byte_tokenizer(), chat_template=export.chat_template(with_options, byte_tokenizer()))
    tokenizer.save(tmp_path / "options")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "options")
    assert theirs.apply_chat_template(asked, tokenize=False) == 'What is "two"\nplus two?now!'


def test_engines_may_write_sequences_as_long_as_those_trained_on(run, tmp_path):
    _, model, _ = run
    path = shutil.copytree(run[0], tmp_path / "run")
    long = config.SFT(model=model, sequence_length=32768)
    (path / "config.json").write_text(json.dumps(config.to_json(long)))
    assert run_export(path, tmp_path / "out") == 0
    assert json.loads((tmp_path / "out/config.json").read_text())["max_position_embeddings"] == 32768
    opened, text = loading.open_model(str(path)), config.Text()
    assert plan_export(long, model, text, byte_tokenizer(), None).config["max_position_embeddings"] == 32768
    released = dataclasses.replace(opened, origin=config_of(model) | {"max_position_embeddings": 65536})
    assert plan_export(long, model, text, byte_tokenizer(), released).config["max_position_embeddings"] == 65536


def test_a_run_in_a_bucket(run, tmp_path, monkeypatch):
    """Keeps its template, also where its text has no setting of its own, and gives one step, when its weights are wanted."""
    path = shutil.copytree(run[0], tmp_path / "run")
    (path / "model/text.json").write_text(json.dumps(config.to_json(config.Text())))
    bucket = Bucket()
    monkeypatch.setattr(fsspec, "filesystem", {"gs": bucket}.get)
    for file in hub._below(path):
        bucket.pipe(f"/exports/run/{file}", (path / file).read_bytes())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Bucket.copied.clear()
    assert loading.open_model("gs://exports/run@best").trained_length
    assert not [file for file in Bucket.copied if "/state/" in file]
    assert run_export("gs://exports/run@best", tmp_path / "out") == 0
    taken = {file.split("/checkpoints/")[1][0] for file in Bucket.copied if "/state/" in file}
    assert taken == {"1"} and run_export("gs://exports/run", tmp_path / "latest") == 0
    table = tensors(tmp_path / "latest")["model.embed_tokens.weight"]
    assert np.array_equal(table, run[2]["embed"]["table"])
    assert not np.array_equal(table, tensors(tmp_path / "out")["model.embed_tokens.weight"])
    assert run_export("gs://exports/run@3", tmp_path / "none") == 2
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    opened = loading.open_model(str(path))
    asked = [{"role": "user", "content": "What is two?"}]
    assert theirs.apply_chat_template(asked, tokenize=False) == Template(opened.text, opened.tokenizer).render(asked).text


def test_a_step_of_a_run_is_that_steps_weights(run, tmp_path):
    path, model, _ = run
    assert run_export(f"{path}@1", tmp_path / "out", "--dtype", "bfloat16") == 0
    found = tensors(tmp_path / "out")
    table = draw(model, 1)["embed"]["table"].astype(jnp.bfloat16)
    assert found["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert np.array_equal(found["model.embed_tokens.weight"].float(), table.astype(np.float32))
    assert found["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == torch.float32  # as released


# -- Nothing is changed


@pytest.mark.parametrize("family", ["DeepseekV3 with MTP", "Qwen3Moe", "Llama"])
def test_an_unchanged_model_leaves_as_it_came(family, tmp_path):
    model = dataclasses.replace(WITH_MTP[family], vocab_size=264, param_dtype="bfloat16")
    weights = cast(draw(model), model)
    origin = config_of(model) | {"max_position_embeddings": 1234, "pad_token_id": 5, "eos_token_id": [3, 4]}
    first = write_directory(tmp_path / "first", model, weights, origin=origin)
    (first / "generation_config.json").write_text('{"temperature": 0.6, "top_p": 0.95, "eos_token_id": [1, 2]}')
    opened = loading.open_model(str(first))
    specs = decoder.specs(opened.model)
    back = opened.load(specs, sharding.param_shardings(specs, ONE, sharding.TRAIN))
    assert jax.tree.all(jax.tree.map(same_bits, back, weights))
    assert run_export(first, tmp_path / "second", "--like", str(first)) == 0
    a, b = tensors(first), tensors(tmp_path / "second")
    assert list(a) == list(b)
    assert all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)
    assert a["model.embed_tokens.weight"].dtype == torch.bfloat16
    ours = json.loads((tmp_path / "second" / "config.json").read_text())
    assert ours == origin and ours == json.loads((first / "config.json").read_text())
    generation = json.loads((tmp_path / "second" / "generation_config.json").read_text())
    assert generation == {"temperature": 0.6, "top_p": 0.95, "eos_token_id": [1, 2, 3, 4]}  # every end token that was named
    assert (tmp_path / "second" / "tokenizer.json").read_bytes() == (first / "tokenizer.json").read_bytes()
    if model.mtp_depth:
        last = f"model.layers.{model.n_layers}"
        assert torch.equal(b[f"{last}.embed_tokens.weight"], b["model.embed_tokens.weight"])
        assert torch.equal(b[f"{last}.shared_head.head.weight"], b["lm_head.weight"])
        assert f"{last}.eh_proj.weight" in b


def config_of(model):
    return export.plan(model, None).config


def test_slices_of_arrays_that_lie_on_many_devices(monkeypatch):
    """Whatever the bits: of -0.0 and NaN too, and without gathering an axis to take one entry of it."""
    mesh = sharding.make_mesh(config.Mesh(expert=4, tensor=2, fsdp=1))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "expert", None, "tensor"))
    take, programs = export._take, []

    def spy(*args):
        programs.append(take.lower(*args).compile().as_text())
        return take(*args)

    monkeypatch.setattr(export, "_take", spy)
    for dtype in (jnp.bfloat16, jnp.float32):
        values = np.random.default_rng(0).normal(size=(2, 8, 3, 4)).astype(dtype)
        values[1, 5, 0, :2] = -0.0, np.nan
        x = jax.device_put(values, where)
        assert same_bits(export._fetch(x, (1, 5)), values[1, 5])
    assert all("all-reduce" in text and "all-gather" not in text for text in programs)


# -- FP8


def test_fp8_is_deepseeks(tmp_path):
    attention = config.MLA(n_heads=2, q_rank=None, kv_rank=130, nope_dim=64, rope_dim=6, v_dim=66)  # ragged everywhere
    model = dataclasses.replace(MLA, d_model=140, d_ff=20, attention=attention, param_dtype="bfloat16")
    weights = cast(draw(model), model)
    plain = tensors(write_directory(tmp_path / "plain", model, weights))
    found = tensors(write_directory(tmp_path / "out", model, weights, "fp8", max_shard_bytes=100_000))
    scaled = {name.removesuffix("_scale_inv") for name in found if name.endswith("_scale_inv")}
    kept = ("embed_tokens", "lm_head", "norm", "mlp.gate.", "eh_proj", "shared_head")  # what DeepSeek left in bfloat16
    assert scaled == {name for name in plain if not any(word in name for word in kept)}
    assert found.keys() - {f"{name}_scale_inv" for name in scaled} == plain.keys()
    for name, w in plain.items():
        if name not in scaled:
            assert torch.equal(found[name], w) and found[name].dtype == w.dtype
            continue
        q, scale = found[name], found[f"{name}_scale_inv"]
        assert q.dtype == torch.float8_e4m3fn and scale.dtype == torch.float32
        assert scale.shape == (-(-w.shape[0] // 128), -(-w.shape[1] // 128))
        every = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[: w.shape[0], : w.shape[1]]
        error = (q.float() * every - w.float()).abs()
        assert (error <= w.float().abs() / 16 + every / 512).all()  # half a unit of three bits, or of the smallest number
        assert q.float().abs().max() == 448
    assert found["model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv"].shape == (2, 2)
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["torch_dtype"] == "bfloat16"
    assert said["quantization_config"] == {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128],
    }  # fmt: skip
    unquantised = export.plan(model, None, None, said)  # what no --dtype is, as its help says
    assert unquantised.dtype == "bfloat16" and "quantization_config" not in unquantised.config
    assert export.plan(model, None, None, said | {"torch_dtype": "float16"}).dtype == "float32"
    named = export.plan(FAMILIES["Qwen3Moe"], None, "fp8").config["quantization_config"]["modules_to_not_convert"]
    assert named == ["lm_head", "model.layers.0.mlp.gate", "model.layers.1.mlp.gate"]


# -- Refusals


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (dataclasses.replace(GQA, attention=config.GQA(4, 2, 8, qk_norm=True)), "moe"),  # a sigmoid router, shared experts
        (dataclasses.replace(GQA, segments=(config.Segment("dense", 2),), moe=None), "qkv_bias"),  # beside qk_norm
        (dataclasses.replace(MLA, moe=dataclasses.replace(MOE, scoring="softmax")), "scoring"),
        (dataclasses.replace(MLA, moe=dataclasses.replace(MOE, bias=False)), "bias"),
        (dataclasses.replace(MLA, segments=(config.Segment("moe", 1), config.Segment("dense", 1))), "segments"),
        (dataclasses.replace(FAMILIES["Qwen3"], rope=config.Rope(interleaved=True)), "interleaved"),
        *(
            (dataclasses.replace(FAMILIES["Qwen3Moe"], moe=dataclasses.replace(FAMILIES["Qwen3Moe"].moe, **change)), why)
            for change, why in (({"scale": 2.0}, "scale"), ({"n_groups": 2}, "n_groups"), ({"bias": True}, "bias"))
        ),
    ],
)
def test_what_no_released_family_says_is_refused(model, why):
    with pytest.raises(config.ConfigError, match=why) as error:
        export.plan(model, None)
    assert "\n" not in str(error.value)


def test_like_lists_every_difference_and_writes_nothing(run, tmp_path, capsys):
    path, model, weights = run
    bigger = dataclasses.replace(model, vocab_size=300, segments=(config.Segment("dense", 1), config.Segment("moe", 2)))
    reference = write_directory(tmp_path / "reference", bigger, draw(bigger), "bfloat16")
    assert run_export(path, tmp_path / "out", "--like", str(reference)) == 2
    said = capsys.readouterr()
    lines = said.out.splitlines()
    here, there = tensors(write_directory(tmp_path / "here", model, weights)), tensors(reference)
    assert len(lines) == len(here.keys() | there.keys()) - 1  # the router's bias of layer 1 is float32 in both
    assert "model.embed_tokens.weight: here F32 [264, 16], there BF16 [300, 16]" in lines
    assert "model.layers.2.input_layernorm.weight: here absent, there BF16 [16]" in lines
    assert len(said.err.splitlines()) == 1 and f"{len(lines)} tensors" in said.err
    assert not (tmp_path / "out").exists()
    assert run_export(path, tmp_path / "out", "--like", str(tmp_path / "here")) == 0


def test_a_directory_with_files_in_it_is_left_alone(run, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("mine")
    assert run_export(run[0], tmp_path / "out") == 2
    assert "not an empty directory" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "notes"]


@pytest.mark.parametrize(("out", "dtype"), [("a.gguf", "fp8"), ("a", "q8_0")])
def test_a_dtype_of_the_other_format_is_refused(run, tmp_path, capsys, out, dtype):
    assert run_export(run[0], tmp_path / out, "--dtype", dtype) == 2
    assert f"--dtype is {dtype}" in capsys.readouterr().err


# -- Nothing is left half written


def test_a_full_disk_is_one_line_and_leaves_nothing(run, tmp_path, capsys, monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # a write fails in the middle of the weights
    try:
        assert run_export(run[0], tmp_path / "out") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "cannot write" in said[0] and "nothing was left" in said[0]
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1000))
    assert run_export(run[0], tmp_path / "out") == 2
    assert "its disk has 1e-06 GB free" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_export_that_is_under_way_does_not_look_whole(run, tmp_path):
    _, model, weights = run
    out, seen = tmp_path / "out", []
    left = tmp_path / ".out.part"  # what a killed export leaves
    left.mkdir()
    (left / "model-00007-of-00009.safetensors").write_text("old")
    write_directory(out, model, weights, max_shard_bytes=10_000, progress=lambda done: seen.append((done, out.exists())))
    assert sum(done for done, _ in seen) == sum(t.nbytes for t in tensors(out).values())
    assert not any(exists for _, exists in seen)
    assert not left.exists() and not (out / "model-00007-of-00009.safetensors").exists()


def test_exports_of_a_run_keep_the_newest(run, tmp_path):
    _, model, weights = run
    planned = export.plan(model, None)
    (tmp_path / "9").mkdir()  # of an attempt that went on after the checkpoint it was resumed from
    for step in (2, 4, 6, 6):
        export_step(planned, weights, tmp_path, step, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["4", "6"]


def test_tensors_of_odd_sizes_stay_on_their_grid(tmp_path, monkeypatch):
    """safetensors files have no gaps, and torch refuses a float32 that begins off a multiple of 4."""
    monkeypatch.setattr(write, "_CHUNK", 12)  # a tensor is written in several parts
    values = {"a": np.arange(35.0).reshape(5, 7), "b": np.arange(3.0), "c": np.arange(6.0).reshape(2, 3).T, "d": np.arange(5.0)}
    dtypes = {"a": "F8_E4M3", "b": "F32", "c": "BF16", "d": "F32"}

    def piece(names):
        return write.Piece(
            tuple(write.Tensor(n, dtypes[n], values[n].shape) for n in names), lambda: [values[n] for n in names]
        )

    pieces = [piece(names) for names in ("ab", "c", "d")]
    assert write.write_shards(tmp_path, pieces) == 1
    assert not (tmp_path / write.INDEX).exists()
    found = load_file(tmp_path / "model.safetensors")
    kinds = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F32": np.float32, "BF16": ml_dtypes.bfloat16}
    for name, x in values.items():
        assert np.array_equal(found[name].float().numpy(), x.astype(kinds[dtypes[name]]).astype(np.float32))
    with open(tmp_path / "model.safetensors", "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    sizes = {"F8_E4M3": 1, "F32": 4, "BF16": 2}
    assert all((8 + length + header[n]["data_offsets"][0]) % sizes[dtypes[n]] == 0 for n in values)


# -- Several processes


@pytest.mark.parametrize("process", [0, 1])
def test_every_process_gathers_every_entry_also_when_the_first_fails(run, tmp_path, monkeypatch, process):
    """As one of two processes would. A collective that the others do not take part in is waited for without end."""
    _, model, weights = run
    planned, gathered, gather = export.plan(model, None, "fp8"), [], export.gather

    def count(params, entry):
        gathered.append(entry.name)
        return gather(params, entry)

    def fail(*_):
        raise MemoryError("no memory")

    monkeypatch.setattr(export, "gather", count)
    monkeypatch.setattr(export.fp8, "quantize", fail)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: process)
    monkeypatch.setattr(export.processes, "any_of", lambda name, mine: True)
    with pytest.raises(MemoryError if process == 0 else config.ConfigError, match="no memory|process 0 cannot write"):
        export.write(planned, weights, tmp_path / "out")
    assert gathered == [entry.name for entry, _ in planned.tensors]
    assert not list(tmp_path.iterdir())
