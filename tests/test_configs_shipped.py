"""The shipped configs: what their headers say is computed, and the one to copy runs to its end."""

import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

from r1jax import cli, sharding
from r1jax.config import GQA, Mesh, Model, MoE, Pipeline, Rope, Segment, diff, to_json
from r1jax.config.loading import find_config, list_configs, load_config
from r1jax.data import sources
from r1jax.data.tokenizer import byte_tokenizer
from r1jax.observe.metrics import read_metrics
from r1jax.plan import memory

BFLOAT16 = {"param_dtype": "bfloat16", "matmul_dtype": "bfloat16", "remat": "layer"}


def qwen2(d_model: int, layers: int, heads: int, d_ff: int) -> Model:
    """Qwen2.5's architecture, as its config.json gives it."""
    attention = GQA(n_heads=heads, n_kv_heads=2, head_dim=d_model // heads, qkv_bias=True)
    segments = (Segment("dense", layers),)
    return Model(151_936, d_model, d_ff, segments, attention, rope=Rope(theta=1e6), tied=True, **BFLOAT16)


QWEN = {"0.5B": qwen2(896, 24, 14, 4864), "1.5B": qwen2(1536, 28, 12, 8960), "3B": qwen2(2048, 36, 16, 11_008)}
QWEN_30B = Model(
    151_936,
    2048,
    6144,
    (Segment("moe", 48),),
    GQA(n_heads=32, n_kv_heads=4, head_dim=128, qk_norm=True),
    MoE(n_experts=128, top_k=8, d_ff=768, n_shared=0, scoring="softmax", bias=False),
    Rope(theta=1e6),
    **BFLOAT16,
)



def dense(d_model: int, layers: int, heads: int, kv_heads: int, d_ff: int, vocab: int = 152_064, bias: bool = True) -> Model:
    """The larger Qwen2.5 and Llama-3, as their config.json give them."""
    attention = GQA(n_heads=heads, n_kv_heads=kv_heads, head_dim=128, qkv_bias=bias)
    return Model(vocab, d_model, d_ff, (Segment("dense", layers),), attention, rope=Rope(theta=1e6), **BFLOAT16)


QWEN_7B, QWEN_32B = dense(3584, 28, 28, 4, 18_944), dense(5120, 64, 40, 8, 27_648)
CLUSTERS = {
    "distill_qwen_1_5b": QWEN["1.5B"],
    "distill_qwen_7b": QWEN_7B,
    "distill_llama_8b": dense(4096, 32, 32, 8, 14_336, 128_256, False),
    "distill_qwen_14b": dense(5120, 48, 40, 8, 13_824),
    "distill_qwen_32b": QWEN_32B,
    "distill_llama_70b": dense(8192, 80, 64, 8, 28_672, 128_256, False),
    "r1_zero_qwen_7b": QWEN_7B,
    "r1_zero_qwen_32b": QWEN_32B,
    "r1_zero_30b_a100": QWEN_30B,
}
CLAIMS = [
    *(("countdown_qwen", model, rf"{size} ([\d.]+) GiB") for size, model in QWEN.items()),
    ("gsm8k_qwen", QWEN["3B"], r"3B ([\d.]+) GiB"),
    ("custom", QWEN["0.5B"], r"([\d.]+) GiB with the 0.5B model"),
    ("grpo_qwen3_30b_a3b", QWEN_30B, r"([\d.]+) GiB on each of 8,"),
]


def header(name: str) -> str:
    return find_config(name).read_text().split('"""')[1]


@pytest.mark.parametrize("name, model, claim", CLAIMS, ids=[f"{name}-{model.d_model}" for name, model, _ in CLAIMS])
def test_the_memory_a_header_states_is_what_a_dry_run_computes(name, model, claim):
    _, config = load_config(name)
    stages = config.stages().values() if isinstance(config, Pipeline) else [config]
    devices = Mesh(expert=8) if model.moe else Mesh(fsdp=1)
    needs = [memory.table(stage, model, sharding.make_mesh(devices), capacity=2**40).need for stage in stages]
    assert math.isclose(max(needs) / 2**30, float(re.search(claim, header(name))[1]), rel_tol=0.02)


CLUSTER_MEMORY = r"""
import re, sys
import jax
from r1jax import sharding
from r1jax.config.loading import find_config, load_config
from r1jax.plan import memory
from test_configs_shipped import CLUSTERS

for name, model in CLUSTERS.items():
    said, devices = re.search(r"^Memory +([\d.]+) GiB on each of (\d+):", find_config(name).read_text(), re.M).groups()
    stage = load_config(name)[1]
    mesh = sharding.make_mesh(stage.mesh, jax.devices()[: int(devices)])
    table = memory.table(stage, model, mesh, capacity=int(0.92 * 80 * 2**30))
    print(name, said, table.need / 2**30, table.fits)
"""


def test_the_memory_of_the_configs_for_clusters_is_what_a_dry_run_computes_there():
    here = Path(__file__).parent
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=64", "JAX_PLATFORMS": "cpu"}
    env["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parent)])
    command = [sys.executable, "-c", CLUSTER_MEMORY]
    done = subprocess.run(command, env=env, cwd=here, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found = [line.split() for line in done.stdout.splitlines()]
    assert [name for name, *_ in found] == list(CLUSTERS)
    for name, said, need, fits in found:
        assert math.isclose(float(need), float(said), rel_tol=0.02) and fits == "True", name


def test_the_students_have_their_published_rates_and_all_else_in_common():
    """arXiv 2501.12948v2, appendix B.4.3."""
    rates = {"qwen_1_5b": 1e-4, "qwen_7b": 8e-5, "qwen_14b": 7e-5, "qwen_32b": 6e-5, "llama_8b": 5e-5, "llama_70b": 2e-5}
    assert {f"distill_{name}" for name in rates} == {name for name, _ in list_configs() if name.startswith("distill")}
    for name, rate in rates.items():
        stage = load_config(f"distill_{name}")[1]
        assert stage.optimizer.lr == rate and math.isclose(stage.optimizer.lr_end, rate / 10)
        assert (stage.batch, stage.sequence_length, stage.text.template) == (64, 32_768, "r1")
        assert stage.batch % stage.micro_batch == 0


def test_r1_zero_of_qwen_32b_is_as_published():
    """arXiv 2501.12948v2, appendix B.4.1."""
    stage = load_config("r1_zero_qwen_32b")[1]
    assert (stage.optimizer.lr, stage.kl_beta, stage.sampling.temperature, stage.reference_every) == (2e-6, 0.001, 1.0, 400)
    assert (stage.group, stage.questions, stage.group * stage.questions * stage.minibatches) == (16, 32, 8192)
    assert stage.sampling.max_new_tokens == 32_768 and load_config("r1_zero_30b_a100")[1].optimizer.lr == 3e-6


def test_the_whole_recipe_is_as_published():
    """Nature 2025, Methods and supplement B; arXiv 2501.12948v2, appendix B."""
    pipeline = load_config("r1_pipeline_671b")[1]
    stages, inputs = pipeline.stages(), pipeline.inputs()
    assert stages["zero"].steps == 10_400 and stages["zero"].optimizer.lr == 3e-6
    for name in ("dev1", "sft2"):  # both begin with the base
        stage = stages[name]
        assert (stage.optimizer.lr, stage.optimizer.lr_end, stage.batch, stage.sequence_length) == (5e-5, 5e-6, 128, 32_768)
        assert stage.init == "deepseek-ai/DeepSeek-V3-Base"
    assert (inputs["dev1"], inputs["sft2"], inputs["rl1"]) == (("cold",), ("rejection",), ("dev1",))
    for name, temperature in (("rl1", 1.0), ("rl2", 0.7)):
        stage = stages[name]
        assert (stage.optimizer.lr, stage.kl_beta, stage.clip_high) == (3e-6, 0.001, 10)
        assert stage.sampling.temperature == temperature
        assert (stage.group, stage.questions, stage.group * stage.questions * stage.minibatches) == (16, 32, 8192)
        assert (stage.reference_every, stage.sampling.max_new_tokens) == (400, 32_768)
        assert all(s.rewards["language"] == 1 for s in stage.sources)
    for name, rows in (("helpful", 66_000), ("safety", 106_000)):
        stage = stages[name]
        assert (stage.optimizer.lr, stage.batch, stage.sources[0].limit) == (6e-6, 256, rows)
        assert stage.steps == rows // 256  # one epoch
    assert (stages["helpful"].reads, stages["safety"].reads, stages["safety"].form) == ("summary", "response", "pointwise")
    rl2 = stages["rl2"]
    assert rl2.steps == 1700 and inputs["rl2"] == ("sft2", "helpful", "safety")
    assert [(p.name, p.sources, p.last_steps) for p in rl2.preference] == [(n, (n,), 400) for n in ("helpful", "safety")]
    assert stages["rejection"].rows == {"math": 395_285, "logic": 10_395, "general": 177_812}
    assert all(s.limit for name in ("cold", "rejection") for s in stages[name].sources)  # so that it can be planned
    rates = {s.optimizer.lr for name, s in stages.items() if name.startswith(("qwen", "llama"))}
    assert rates == {1e-4, 8e-5, 7e-5, 6e-5, 5e-5, 2e-5}
    assert {*pipeline.bill.counterparts.values()} == {"R1-Zero", "SFT data creation", "R1"}


def test_the_objectives_differ_in_nothing_else():
    _, base = load_config("compare_grpo")
    of_critic = {"advantage", "critic.optimizer.lr", "critic.optimizer.lr_end", "critic.optimizer.warmup_steps",
                 "critic.optimizer.weight_decay"}  # fmt: skip
    expected = {
        "ppo_1": of_critic,
        "ppo_095": of_critic | {"gae_lambda"},
        "dr_grpo": {"advantage_std", "normalize"},
        "dapo": {"clip_high", "normalize", "dynamic_sampling", "dynamic_reward",
                 'sources.0.rewards.overlong{"max_tokens":16,"buffer":2}'},
        "gspo": {"ratio_level", "clip_low", "clip_high"},
    }  # fmt: skip
    assert {f"compare_{name}" for name in (*expected, "grpo")} == {n for n, _ in list_configs() if n.startswith("compare_")}
    for name, fields in expected.items():
        _, other = load_config(f"compare_{name}")
        assert {f"rl.{field}" for field in fields} == {where for where, _, _ in diff(to_json(base), to_json(other))}
    assert base.rl.sampling.max_new_tokens == 16 and base.rl.minibatches > 1


@pytest.mark.parametrize("name", [name for name, _ in list_configs() if name not in ("quickstart", "smollm2_zero")])
def test_a_header_says_what_to_expect_and_that_it_was_not_run(name):
    text = header(name)
    assert re.search(rf"^    r1jax train ({name}|mine\.py)\b", text, re.M)
    assert re.findall(r"^(Device|Memory|Expected) ", text, re.M) == ["Device", "Memory", "Expected"]
    assert re.search(r"\bNot run (here|there)\b", text)


@pytest.mark.parametrize("name", ["gsm8k_qwen", "countdown_qwen", "custom"])
def test_without_a_network_a_dry_run_is_one_line(name, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert cli.main(["train", name, "--dry-run"]) == 2
    out, err = capfd.readouterr()
    assert re.fullmatch(r"r1jax: error: Qwen/Qwen2\.5-[\w.-]+: .*HF_HUB_OFFLINE.*\n", err) and not out


@pytest.mark.parametrize(
    "name, folder, row, answer",
    [
        ("gsm8k_qwen", "main", {"question": "6 x 7?", "answer": "6*7 = <<6*7=42>>42\n#### 42"}, "42"),
        ("grpo_qwen3_30b_a3b", "en", {"prompt": "6 x 7?", "solution": "42", "data_source": "math_dapo"}, "42"),
    ],
)
def test_rows_of_a_data_set_on_the_hub_become_ours(name, folder, row, answer, tmp_path):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "train-00000-of-00001.jsonl").write_text(json.dumps(row) + "\n")
    source = dataclasses.replace(load_config(name)[1].sources[0], path=str(tmp_path))
    (found,) = sources.load(source)
    assert (found["prompt"], found["answer"]) == ("6 x 7?", answer)


# -- The config to copy


def write_model(directory: Path) -> None:
    """A random Qwen2 of one layer with the byte tokenizer, as a Hugging Face directory."""
    d, ff, vocab = 16, 32, 264
    block = {"self_attn.q_proj": (d, d), "self_attn.k_proj": (8, d), "self_attn.v_proj": (8, d), "self_attn.o_proj": (d, d)}
    block |= {"mlp.gate_proj": (ff, d), "mlp.up_proj": (ff, d), "mlp.down_proj": (d, ff)}
    shapes = {f"model.layers.0.{name}.weight": shape for name, shape in block.items()}
    shapes |= {f"model.layers.0.self_attn.{name}_proj.bias": block[f"self_attn.{name}_proj"][:1] for name in "qkv"}
    shapes |= {f"model.layers.0.{name}.weight": (d,) for name in ("input_layernorm", "post_attention_layernorm")}
    shapes |= {"model.embed_tokens.weight": (vocab, d), "model.norm.weight": (d,)}
    rng = np.random.default_rng(0)
    weights = {name: (0.3 * rng.standard_normal(shape)).astype(ml_dtypes.bfloat16) for name, shape in shapes.items()}
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": d,
        "intermediate_size": ff,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": vocab,
    }
    byte_tokenizer().save(directory)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")


def test_the_custom_config_runs_to_its_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(find_config("custom"), "mine.py")
    rows = [{"prompt": f"{i} + 1 =", "answer": str(i + 1), "completion": f"<answer>{i + 1}</answer>"} for i in range(60)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_model(tmp_path / "start")
    flags = "--sft.init start --sft.steps 2 --sft.batch 8 --grpo.steps 1 --grpo.questions 2 --grpo.group 4 --grpo.eval.every 0"
    for stage in ("sft", "grpo"):
        flags += f" --{stage}.sampling.max-new-tokens 8 --{stage}.engine.slots 8 --{stage}.engine.max-prompt-tokens 16"
        flags += f" --{stage}.sequence-length 64 --{stage}.matmul-dtype float32 --{stage}.mesh.fsdp 1 --{stage}.workers.count 1"
        flags += f" --{stage}.remat none --{stage}.log.no-tensorboard"
    assert cli.main(["train", "mine.py", *flags.split(), "--grpo.no-preflight", "--run-dir", "run"]) == 0
    assert [row["step"] for row in read_metrics(Path("run/sft")) if "loss" in row] == [1, 2]
    (update,) = [row for row in read_metrics(Path("run/grpo")) if "reward/mine.py:concise" in row]
    assert update["source/mine/reward"] == pytest.approx(update["reward/accuracy"] + 0.2 * update["reward/mine.py:concise"])
    for sample in map(json.loads, Path("run/grpo/samples.jsonl").read_text().splitlines()):
        assert sample["rewards"]["mine.py:concise"]["value"] == pytest.approx(1 / (1 + len(sample["completion"]) / 400))
