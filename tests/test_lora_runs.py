"""LoRA runs: their checkpoints, how they go on, the weights that they stand for, and what leaves them for other engines."""

import contextlib
import dataclasses
import io
import json
import shutil

import hf_reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch
import transformers
from random_models import FAMILIES, TOKENS, draw, jit
from rich.console import Console
from safetensors.torch import load_file

from r1jax import cli, config, loading, lora, rundir, sharding
from r1jax import params as parameters
from r1jax.checkpoint import Checkpointer
from r1jax.convert import export, peft
from r1jax.data.tokenizer import byte_tokenizer
from r1jax.models import decoder
from r1jax.plan import memory
from r1jax.stages import grpo as grpo_stage
from r1jax.stages import pipeline, workspace
from r1jax.stages.prepare import prepare

ADAPTERS = config.LoRA(rank=2, alpha=4.0)
ONE = sharding.make_mesh(config.Mesh(fsdp=1), jax.devices()[:1])


def make_run(path, model, weights, **settings):
    """A run's directory as training leaves it."""
    path.mkdir(parents=True)
    stage = config.SFT(model=None if "lora" in settings else model, text=tiny.TEXT, **settings)
    (path / "config.json").write_text(json.dumps(config.to_json(stage)))
    loading.describe(path, model, tiny.TEXT, byte_tokenizer())
    save(path, 1, weights)
    return path


def save(path, step, weights):
    with contextlib.closing(Checkpointer(path / "checkpoints")) as checkpoints:
        checkpoints.save(step, {"params": weights}, {})


def load(name):
    opened = loading.open_model(str(name))
    specs = decoder.specs(opened.model)
    return opened.load(specs, sharding.param_shardings(specs, ONE, sharding.TRAIN))


def grpo(base, **changes):
    return tiny.grpo(init=str(base), model=None, lora=ADAPTERS, **changes)


def train(stage, path):
    assert pipeline.train(stage, name="tiny", run_dir=str(path)) == 0
    return path


@contextlib.contextmanager
def working(stage, path):
    run = rundir.open_or_resume(path, config.to_json(stage))
    try:
        with workspace.open_workspace(prepare(stage, run=path), run, "tiny") as work:
            work.display.console = Console(file=io.StringIO())
            yield work
    finally:
        run.close()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Wider than the tiny model, so that adapters of rank 2 are the smaller part."""
    model = dataclasses.replace(tiny.MOE, d_model=32, moe=dataclasses.replace(tiny.MOE.moe, d_ff=32))
    return make_run(tmp_path_factory.mktemp("lora") / "base", model, draw(model, kernel=0.15))


@pytest.fixture(scope="module")
def whole(base):
    return train(grpo(base, steps=4, reference_every=2), base.parent / "whole")


def same_values(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_run_that_was_stopped_is_the_uninterrupted_one(base, whole):
    """The reference is the base, and after two steps the adapters as they were then."""
    pieces = base.parent / "pieces"
    for steps in (2, 4):
        train(grpo(base, steps=steps, reference_every=2), pieces)
    assert tiny.metrics(pieces) == tiny.metrics(whole) and tiny.samples(pieces) == tiny.samples(whole)
    same_values(load(pieces), load(whole))
    kl = [row["kl"] for row in tiny.metrics(whole)]
    assert kl[0] == kl[2] == 0 and min(kl[1], kl[3]) > 1e-4


def test_a_checkpoint_holds_adapters_alone(base, whole):
    about = json.loads((whole / "checkpoints" / "4" / "about.json").read_text())
    arrays = {name: kind for name, kind in about["arrays"].items() if name.startswith("params/")}
    assert arrays and all(name.endswith(("/a", "/b")) for name in arrays)
    assert not any("router" in name or "norm" in name for name in about["arrays"])
    assert arrays["params/segments/1/ff/gate/a"] == "float32[1, 4, 32, 2]"
    assert about["arrays"].keys() >= {name.replace("params/", "reference/") for name in arrays}


def test_a_run_stands_for_its_base_with_the_adapters_merged(base, whole):
    opened = loading.open_model(str(whole))
    learned = opened.adapters.read()

    def merged(x, adapter):
        if adapter is None:
            return x
        return x + 2 * np.einsum("l...r,lrz->l...z", adapter.a, adapter.b.reshape(*adapter.b.shape[:2], -1)).reshape(x.shape)

    expected = jax.tree.map(merged, load(base)["segments"][0], learned["segments"][0])
    found = load(whole)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found["segments"][0], expected)
    same_values(found["embed"], load(base)["embed"])
    assert abs(found["segments"][1]["ff"]["gate"] - load(base)["segments"][1]["ff"]["gate"]).max() > 1e-3


def test_the_next_stage_begins_from_the_merged_weights(whole):
    with working(grpo(whole), whole.parent / "next") as work:
        same_values(lora.off(work.state.params), load(whole))
        recorded = json.loads((whole.parent / "next" / "model" / "base.json").read_text())
        assert recorded["name"] == "../whole@4"  # a base that is trained on stays what it was


def test_the_reference_is_the_policy_without_adapters_from_the_same_arrays(base, monkeypatch):
    """Its log-probs are those of the base; until the first update pi_old's pass serves for it."""
    stage = grpo(base, steps=2, reference_every=0)
    with working(stage, base.parent / "reference") as work:
        assert work.state.reference is None
        passes = []
        original = work.trainer.logprobs
        monkeypatch.setattr(work.trainer, "logprobs", lambda *args: passes.append(args[0]) or original(*args))
        answers = grpo_stage.next_answers(work)
        advantages = np.ones(len(answers.rewards), np.float32)
        rows = np.arange(8)
        batch, count, divisor = grpo_stage.pack(work, answers, advantages, rows, first=True)
        assert not passes and batch.old_logprobs is batch.ref_logprobs is None  # the update takes its own
        batch, count, divisor = grpo_stage.pack(work, answers, advantages, rows, first=False)
        assert len(passes) == 1 and batch.ref_logprobs is batch.old_logprobs
        plain = load(base)
        same_values(batch.ref_logprobs, original(plain, batch, count))
        for x, y in zip(jax.tree.leaves(work.sampler.params), jax.tree.leaves(work.state.params), strict=True):
            assert x.dtype == y.dtype
        shared = {id(x) for x in jax.tree.leaves(lora.off(work.state.params))}
        assert all(id(x) in shared for x in jax.tree.leaves(lora.off(work.sampler.params)))  # one device: no copy of the base

        work.update(batch, count, divisor)
        batch, count, _ = grpo_stage.pack(work, answers, advantages, rows, first=False)
        assert len(passes) == 3
        np.testing.assert_array_equal(batch.ref_logprobs, original(plain, batch, count))
        assert abs(batch.ref_logprobs - batch.old_logprobs).max() > 1e-3

        kept = jax.tree.leaves(lora.off(work.sampler.params))
        work.sampler.load(work.state.params)  # the adapters are new, the base is the one taken before
        assert all(x is y for x, y in zip(jax.tree.leaves(lora.off(work.sampler.params)), kept, strict=True))
        same_values(work.sampler.params["segments"][1][0]["ff"]["up"].b[None], work.state.params["segments"][1]["ff"]["up"].b)


def test_the_sampler_samples_from_base_and_adapters(whole):
    """The mean difference of its log-probs to the trainer's."""
    for row in tiny.metrics(whole):
        assert row["sampler/logprob_diff_max"] < 1e-4 and row["grad/norm"] > 0


def test_memory_counts_adapters_where_only_they_are(base):
    stage = grpo(base)
    found = memory.table(stage, loading.open_model(str(base)).model, ONE)
    full = memory.table(dataclasses.replace(stage, lora=config.LoRA()), loading.open_model(str(base)).model, ONE)
    adapters = found.weights - full.weights
    assert 0 < adapters < full.weights / 3
    assert found.moments == 2 * adapters + 8  # and two counts of steps, of Adam and of its rate
    assert full.moments > 1.9 * full.weights
    # Gradients are the sum over micro-batches: of one, without a loop over layers, they come as activations go.
    assert found.reference == adapters and found.sampler == adapters and found.gradients == adapters
    never = memory.table(dataclasses.replace(stage, reference_every=0), loading.open_model(str(base)).model, ONE)
    assert never.reference == 0


# -- Refused


def test_a_base_that_has_changed_is_refused(base, whole, tmp_path):
    """A pipeline that was moved finds its stages; one whose first stage was trained anew does not pass for it."""
    model = loading.open_model(str(base)).model
    for name in ("base", "whole"):
        shutil.copytree(base.parent / name, tmp_path / name)
    same_values(load(tmp_path / "whole"), load(whole))
    save(tmp_path / "base", 1, draw(model, 1, kernel=0.15))
    with pytest.raises(config.ConfigError, match=f"{tmp_path}/base@1 has changed since the adapters of .* put the old ones"):
        load(tmp_path / "whole")


def test_fingerprints_see_values_places_and_names():
    tree = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(3, jnp.bfloat16)}
    found = parameters.fingerprint(tree)
    spread = jax.device_put(tree["a"], sharding.NamedSharding(sharding.make_mesh(config.Mesh(data=2, fsdp=4)), jax.P("data")))
    assert parameters.fingerprint({**tree, "a": spread}) == found
    changed = (
        {**tree, "a": tree["a"].at[1, 2].set(5.0000005)},
        {**tree, "a": tree["a"].at[0, 1].set(2.0).at[0, 2].set(1.0)},
        {**tree, "a": tree["a"].reshape(3, 2)},
        {**tree, "b": jnp.ones(3, jnp.float16)},
        {"a": tree["a"], "c": tree["b"]},
    )
    assert len({found, *map(parameters.fingerprint, changed)}) == 1 + len(changed)


def test_what_lora_cannot_do_is_told_in_a_line(base, tmp_path, capsys):
    with pytest.raises(config.ConfigError, match="lora.rank is 2 but init is 'random'"):
        tiny.grpo(lora=ADAPTERS)
    with pytest.raises(ValueError, match="'atention/' matches no matrix"):
        prepare(dataclasses.replace(grpo(base), lora=config.LoRA(rank=1, targets=("atention/",))))
    assert cli.main(["export", "--model", str(base), "--out", str(tmp_path / "out"), "--adapter"]) == 2
    assert f"{base} has no adapters" in capsys.readouterr().err


# -- For other engines


def learned(model, settings, seed=7):
    """Adapters as numpy arrays, with nothing left at 0."""
    specs = lora.adapt(decoder.specs(model), settings)
    rng = np.random.default_rng(seed)
    moving, _ = parameters.split(specs, lora.moving(specs, settings))
    return parameters.map_specs(lambda s: (0.2 * rng.standard_normal(s.shape)).astype(np.float32), moving)


def write_adapters(path, model, adapters, settings, base="org/name@abc"):
    planned = peft.plan(export.plan(model, None), adapters, settings, base)
    peft.write(planned, path)
    return json.loads((path / peft.CONFIG).read_text()), load_file(path / peft.WEIGHTS)


def apply(theirs, described, tensors):
    """The adapters, written into the weights of transformers' model as PEFT's documentation defines them."""
    state = theirs.state_dict()
    for name in {name.rsplit(".lora_", 1)[0] for name in tensors}:
        module = name.removeprefix("base_model.model.")
        rank, alpha = (
            described[pattern].get(module.rpartition(".")[2], described[default])
            for pattern, default in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))
        )
        a, b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        assert len(a) == rank == b.shape[1] and module.rpartition(".")[2] in described["target_modules"]
        delta = alpha / rank * b @ a
        if ".experts." not in module:
            state[f"{module}.weight"] += delta
            continue
        layer, _, rest = module.partition(".experts.")
        expert, kind = rest.split(".")
        if kind == "down_proj":
            state[f"{layer}.experts.down_proj"][int(expert)] += delta
        else:
            half = len(delta)
            rows = slice(0, half) if kind == "gate_proj" else slice(half, 2 * half)
            state[f"{layer}.experts.gate_up_proj"][int(expert), rows] += delta
    theirs.load_state_dict(state)


def our_logits(params, model):
    @jit
    def run(params):
        positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
        return decoder.forward(params, TOKENS, positions, jnp.ones_like(TOKENS), model=model)[0] @ decoder.head_kernel(params)

    return np.asarray(run(params))


@pytest.mark.parity
@pytest.mark.parametrize("family", ["DeepseekV3", "DeepseekV3 without a query latent", "Qwen3Moe", "Qwen2"])
def test_a_peft_directory_says_what_the_adapters_do(family, tmp_path):
    model = FAMILIES[family]
    settings = config.LoRA(rank=3, alpha=6.0)
    params, adapters = draw(model), learned(model, settings)
    described, tensors = write_adapters(tmp_path / "out", model, adapters, settings)
    assert described["base_model_name_or_path"] == "org/name" and described["revision"] == "abc"
    expected = our_logits(lora.attach(params, adapters), model)
    theirs = hf_reference.build(family.split()[0], params, model)
    assert abs(hf_reference.logits(theirs, TOKENS) - expected).max() > 0.1
    apply(theirs, described, tensors)
    np.testing.assert_allclose(hf_reference.logits(theirs, TOKENS), expected, atol=3e-4, rtol=0)


@pytest.mark.parity
def test_a_run_of_our_own_base_leaves_in_the_order_of_its_export(base, whole, tmp_path, capsys):
    """Of latent attention made here engines know the other order of rotary channels."""

    def run(model, out, *more):
        assert cli.main(["export", "--model", str(model), "--out", str(tmp_path / out), "--mesh.fsdp", "1", *more]) == 0

    run(base, "base")
    run(whole, "merged")
    run(whole, "adapters", "--adapter")
    told = capsys.readouterr()
    assert f"matrices of {base}@1" in told.out and "down_proj, gate_proj, up_proj outside of the experts" in told.err
    described = json.loads((tmp_path / "adapters" / peft.CONFIG).read_text())
    both = [
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, attn_implementation="eager", dtype=torch.float32)
        for name in ("base", "merged")
    ]
    apply(both[0], described, load_file(tmp_path / "adapters" / peft.WEIGHTS))
    ours, merged = (hf_reference.logits(theirs.eval(), TOKENS) for theirs in both)
    np.testing.assert_allclose(ours, merged, atol=2e-4, rtol=0)
    assert (tmp_path / "adapters" / "tokenizer.json").is_file()


@pytest.mark.parity
def test_peft_loads_it(tmp_path):
    """Dense, and a mixture whose experts transformers 5 holds as one parameter."""
    library = pytest.importorskip("peft")
    for i, family in enumerate(("Qwen2", "Qwen3Moe")):
        model, settings = FAMILIES[family], config.LoRA(rank=3, alpha=6.0)
        params, adapters = draw(model), learned(model, settings)
        write_adapters(tmp_path / str(i), model, adapters, settings)
        theirs = library.PeftModel.from_pretrained(hf_reference.build(family, params, model), tmp_path / str(i))
        expected = our_logits(lora.attach(params, adapters), model)
        np.testing.assert_allclose(hf_reference.logits(theirs, TOKENS), expected, atol=3e-4, rtol=0)


def test_a_part_of_the_matrices_is_named_as_a_whole(tmp_path):
    model = dataclasses.replace(FAMILIES["DeepseekV3"], mtp_depth=1)
    settings = config.LoRA(rank=1, targets=("segments/1/attention/(k_b|o)",))
    described, tensors = write_adapters(tmp_path / "out", model, learned(model, settings), settings)
    assert described["target_modules"] == ["model.layers.1.self_attn.kv_b_proj", "model.layers.1.self_attn.o_proj"]
    assert described["rank_pattern"] == {} and len(tensors) == 4
    b = tensors["base_model.model.model.layers.1.self_attn.kv_b_proj.lora_B.weight"].reshape(4, 8 + 6)
    assert b[:, :8].all() and not b[:, 8:].any()
    beyond = config.LoRA(rank=1, targets=("mtp/",))
    with pytest.raises(config.ConfigError, match="PEFT has no multi-token prediction"):
        peft.plan(export.plan(model, None), learned(model, beyond), beyond, "org/name")
