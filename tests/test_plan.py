"""Topologies by name, collectives by HLO text, the roofline by hand, and the plan's memory beside the compiler's."""

import dataclasses
import json
import math
import warnings

import jax
import numpy as np
import pytest

from r1jax import cli, config, sharding
from r1jax.config.plan import Efficiency, Plan
from r1jax.models import decoder
from r1jax.nn import grouped, kernels
from r1jax.params import is_spec
from r1jax.plan import hlo, memory, money, programs, propose, published, report, roofline, rows, targets, topology
from r1jax.plan.activations import micro_batch
from r1jax.plan.chips import CHIPS
from r1jax.plan.compiling import Program
from r1jax.plan.layout import device_bytes
from r1jax.plan.sampling import Sampling, cache_length
from r1jax.rollout.sampler import Sampler
from r1jax.train.update import Trainer
from tests import tiny

E = Efficiency(compute=0.5, bandwidth=0.5, link=0.5, overlap=0.5, layer_seconds=0.0, longest=1.0, packing=1.0)


# -- Names


@pytest.mark.parametrize(
    ("name", "chip", "chips", "devices", "torus", "per_node"),
    [
        ("v5p:8x8x8", "v5p", 512, 512, (8, 8, 8), 512),
        ("v5p-128", "v5p", 64, 64, (4, 4, 4), 64),  # TensorCores, two of a chip
        ("v4-16", "v4", 8, 8, (2, 2, 2), 8),
        ("v6e-8", "v6e", 8, 8, (2, 4), 8),  # chips
        ("v5litepod-16", "v5e", 16, 16, (4, 4), 16),
        ("V5E:16x16", "v5e", 256, 256, (16, 16), 256),
        ("tpu7x:4x4x4", "tpu7x", 64, 128, (4, 4, 4), 128),  # two devices of a chip
        ("h800:512", "h800", 512, 512, (), 8),
        ("h100:4", "h100", 4, 4, (), 4),
        ("rtx4090", "rtx4090", 1, 1, (), 1),
    ],
)
def test_what_a_name_means(name, chip, chips, devices, torus, per_node):
    t = topology.parse(name)
    assert (t.chip.name, t.chips, t.devices, t.torus, t.per_node) == (chip, chips, devices, torus, per_node)
    assert str(chips) in t.describe()
    assert topology.parse(t.name) == t


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("h80:8", "did you mean h800"),
        ("cluster", "known are v4"),
        ("v5p-5", "there are 8, 16, 32"),
        ("v5e:512", "there are 1, 4, 8"),
        ("v5p:8x8", "3 dimensions"),
        ("v5e:3x5", "must be even"),
        ("h100:12", "multiple of it"),
        ("h100-8", "h100:N"),
        ("v6e:0x4", "at least 1"),
    ],
)
def test_a_wrong_name_is_told(name, why):
    with pytest.raises(config.ConfigError, match=why):
        topology.parse(name)


def test_every_chip_has_a_source_and_a_description_for_its_compiler():
    for chip in CHIPS.values():
        assert len(chip.source) > 20 and chip.fp8 >= chip.bf16 > chip.bandwidth > chip.link >= chip.network > 0
        told = targets.describe(topology.parse(chip.name))
        assert told["platform"] == ("tpu" if chip.platform == "tpu" else "cuda")
    assert targets.describe(topology.parse("h800:512"))["topology"] == "1x64x8"
    assert targets.describe(topology.parse("v6e:1"))["chips_per_host_bounds"] == [1, 1, 1]


# -- Collectives

MODULE = """HloModule jit_f

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %r = f32[] add(%a, %b)
}

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %g = f32[8,8]{1,0} all-gather(%x), replica_groups=[4,2]<=[8], dimensions={0}
  %s = ((f32[4,8]), f32[2,8]) reduce-scatter-start(%y), replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
  %d = f32[2,8] reduce-scatter-done(%s)
  ROOT %t = (s32[], f32[4,8]) tuple(%i, %z)
}

%cond (p: (s32[], f32[4,8])) -> pred[] {
  ROOT %c = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[4,8]) -> f32[4,8] {
  %w = (s32[], f32[4,8]) while(%i), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"10"}}
  %r = bf16[16,4]{1,0} all-reduce(%q), replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}, to_apply=%add
  %p = f32[4,8] collective-permute(%v), source_target_pairs={{0,2},{2,0},{1,3},{3,1}}
  ROOT %o = f32[4,8] get-tuple-element(%w), index=1
}
"""


def test_collectives_by_hand():
    """A mesh of data 2 x fsdp 2 x tensor 2 on two nodes of four devices."""
    axes = {"data": 2, "fsdp": 2, "tensor": 2}
    found = {c.kind: c for c in hlo.collectives(MODULE, axes, [i // 4 for i in range(8)])}
    # 10 turns, 8 x 8 x 4 bytes of which the other of two sends half
    gather = found["all-gather"]
    assert (gather.axes, gather.link, gather.count, gather.bytes, gather.largest) == (("tensor",), "node", 10, 10 * 128, 256)
    # 10 turns of 2 x 8 x 4 bytes, sent to the other, which is 4 devices away: on another node
    scatter = found["reduce-scatter"]
    assert (scatter.axes, scatter.link, scatter.count, scatter.bytes) == (("data",), "network", 10, 10 * 64)
    # 16 x 4 x 2 bytes over groups of 4 of each half: 2 x 3/4
    reduce = found["all-reduce"]
    assert (reduce.axes, reduce.link, reduce.bytes) == (("fsdp", "tensor"), "node", 192)
    permute = found["collective-permute"]
    assert (permute.axes, permute.link, permute.bytes) == (("fsdp",), "node", 128)


def test_collectives_of_a_program_that_was_compiled_here():
    """A layer's product over fsdp and tensor, ten times in a loop: the kernel is gathered, the result summed."""
    mesh = sharding.make_mesh(config.Mesh(fsdp=4, tensor=2))
    lay = jax.sharding.NamedSharding
    p = jax.sharding.PartitionSpec

    def f(x, kernels):
        def body(x, k):
            h = jax.lax.with_sharding_constraint(jax.numpy.tanh(x @ k), lay(mesh, p("fsdp", "tensor")))
            return jax.lax.with_sharding_constraint(h @ k.T, lay(mesh, p("fsdp", None))), None

        return jax.lax.scan(body, x, kernels)[0]

    x = jax.ShapeDtypeStruct((32, 64), "float32", sharding=lay(mesh, p("fsdp", None)))
    k = jax.ShapeDtypeStruct((10, 64, 128), "float32", sharding=lay(mesh, p(None, "fsdp", "tensor")))
    text = jax.jit(f, out_shardings=lay(mesh, p("fsdp", None))).lower(x, k).compile().as_text()
    found = {(c.kind, c.axes): c for c in hlo.collectives(text, dict(mesh.shape), [0] * 8)}
    gather, reduce = found["all-gather", ("fsdp",)], found["all-reduce", ("tensor",)]
    assert gather.count in (10, 20)  # XLA may gather it for each of its two products
    assert gather.bytes == pytest.approx(gather.count * 64 * 64 * 4 * 3 / 4)
    assert reduce.bytes == pytest.approx(10 * 2 * 1 / 2 * 8 * 64 * 4)


# -- Time


def test_the_rollout_and_update_by_hand():
    """One layer whose weights are 64 x 64, so that everything can be counted by hand."""
    model = config.Model(
        vocab_size=100, d_model=8, d_ff=16, segments=(config.Segment("dense", 1),),
        attention=config.GQA(n_heads=2, n_kv_heads=2, head_dim=4), matmul_dtype="bfloat16", dtype="bfloat16",
    )  # fmt: skip
    weights = 4 * 8 * 8 + 3 * 8 * 16  # of a layer
    norms, head = 3 * 8, 8 * 100
    assert roofline.parameters(model) == (0, weights + norms + head)
    t = topology.of_this_machine("cpu", 1, flops=1000.0, bandwidth=100.0, memory=1)
    load = roofline.Load(answers=4, updates=1, prompt=6, answer=10, longest=10, slots=2, computed=80, group=2)
    phases = roofline.estimate(model, t, roofline.Layout(), load, E).phases
    # 4 answers of 10 tokens in 2 slots: 20 steps, each reads all weights; 40 tokens each see 11 of 2 x 8 numbers
    assert phases["rollout"].memory == 20 * 2 * (weights + norms + head) + 40 * 11 * 16 * 2
    decode = 40 * 2 * (weights + head) + 40 * 11 * 2 * 16
    prefill = 2 * 6 * 2 * weights + 2 * 6 * 6 / 2 * 2 * 16 + 2 * 2 * head
    assert phases["rollout"].flops == decode + prefill
    assert phases["rollout"].seconds == pytest.approx(max((decode + prefill) / 500, phases["rollout"].memory / 50))
    # 80 tokens computed forward and twice backward, as sequences of 16
    forward = 2 * weights + 2 * head + 17 / 2 * 2 * 16
    assert phases["update"].flops == pytest.approx(3 * 80 * forward)
    assert phases["update"].link_s == phases["rollout"].link_s == 0
    rows = dataclasses.replace(load, samples=False)
    assert roofline.estimate(model, t, roofline.Layout(), rows, E).phases == {"update": phases["update"]}


def test_communication_hides_behind_products_as_far_as_they_last():
    model = dataclasses.replace(tiny.DENSE, dtype="bfloat16", matmul_dtype="bfloat16")
    t = dataclasses.replace(topology.of_this_machine("gpu", 8, 1e6, 1e6, 1), chips=16)
    load = roofline.Load(answers=64, updates=1, prompt=4, answer=12, longest=12, slots=64)
    layout = roofline.Layout(fsdp=4, tensor=4)
    free, half, none = (
        roofline.estimate(model, t, layout, load, dataclasses.replace(E, overlap=x)).phases["update"] for x in (1, 0.5, 0)
    )
    assert none.exposed_s == none.link_s > half.exposed_s >= none.link_s / 2
    assert free.exposed_s == max(0.0, free.link_s - free.arithmetic_s)
    assert none.seconds == free.without_overlap == half.without_overlap
    # groups of 4 tensor devices lie within a node of 8, and of 4 x 4 fsdp devices every second step leaves it
    size = 2 * 2 * 2 * 3 / 4 * load.tokens / 4 * 16 * 2 * 1
    weights = roofline.parameters(model)[1] * 2 / 4 * 3 / 4 * 3
    assert none.node + none.network == pytest.approx(size + weights)
    assert none.network == pytest.approx(weights * 8 / 15)


def test_twice_as_long_answers_cost_more_than_twice_the_rollout():
    model, t = published.QWEN3_30B, topology.parse("h100:32")
    load = roofline.Load(answers=512, updates=1, prompt=100, answer=1000, longest=1000, slots=512)
    layout = roofline.Layout(fsdp=4, expert=8)
    once, twice = (
        roofline.estimate(model, t, layout, dataclasses.replace(load, answer=n, longest=n), Efficiency()).phases["rollout"]
        for n in (1000, 2000)
    )
    assert 2 < twice.memory / once.memory < 4


def test_the_shares_are_those_that_the_fitted_runs_give():
    fitted = published.fit(Efficiency())
    assert fitted.compute == pytest.approx(Efficiency().compute, rel=0.01)
    assert fitted.bandwidth == pytest.approx(Efficiency().bandwidth, rel=0.01)
    by_run = [p for p in published.predictions(Efficiency()) if p.fitted]
    assert [p.ratio for p in by_run] == pytest.approx([1, 1], abs=0.01)
    assert len(list(published.predictions(Efficiency()))) == 17


# -- Money


def test_what_the_published_hours_imply():
    # 10,400 x 512 answers in 512 x 198 hours
    assert [round(money.implied_rate(n)) for n in (4000, 7500, 10_000)] == [58, 109, 146]


def test_low_base_and_high_by_hand():
    """Hours that depend on two inputs only: 100 x answer / 10 + 50 x overlap."""
    found = money.spread(lambda answer, e: 10 * answer + 50 * e.overlap, 10.0, dataclasses.replace(E, overlap=0.6), known=False)
    assert found.base == 130
    # the answer goes to 5 and 20: 80 and 230; overlap to 0 and 0.9: 100 and 145
    assert found.low == pytest.approx(130 - math.hypot(50, 30))
    assert found.high == pytest.approx(130 + math.hypot(100, 15))
    assert [m[1:] for m in found.moved_by[:2]] == [(80, 230), (100, 145)]


# -- Memory


WIDER = dataclasses.replace(tiny.DENSE, d_model=128, d_ff=256)
CASES = {
    "dense": (WIDER, {"sequence_length": 64}),
    "long rows": (
        dataclasses.replace(WIDER, remat="layer", segments=(config.Segment("dense", 4),)),
        {"sequence_length": 256, "micro_batch": 2},
    ),
    "experts": (
        dataclasses.replace(
            tiny.MOE, d_model=128, d_ff=256, moe=config.MoE(n_experts=16, top_k=2, d_ff=64), remat="layer"
        ),
        {"sequence_length": 64},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_update_is_within_a_tenth_of_the_compiler_s_report(case):
    model, changes = CASES[case]
    s = tiny.grpo(model=model, kl_beta=0.1, **changes)
    mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
    trainer = Trainer(s, model, mesh)
    batch = micro_batch(s, (1, s.micro_batch, s.sequence_length))
    report = trainer.lower_update(batch).compile().memory_analysis()
    found = memory.table(s, model, mesh)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(batch))
    needed = report.argument_size_in_bytes - size + report.temp_size_in_bytes
    planned = found.weights + found.moments + found.reference + found.gradients + found.activations
    assert planned == pytest.approx(needed, rel=0.1)


@pytest.mark.parametrize("model", [tiny.DENSE, tiny.MOE])
def test_decoding_is_within_a_tenth_of_the_compiler_s_report(model):
    engine = config.Engine(slots=64, max_prompt_tokens=64)
    sampling = config.Sampling(max_new_tokens=192)
    mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
    sampler = Sampler(model, engine, mesh, end_ids=(1,))
    length = cache_length(engine, 192)
    report = sampler.lower_decode(length, sampling).compile().memory_analysis()
    params, state = sampler.abstract(length, 192)
    found = Sampling.of(model, mesh, engine, 192)
    assert found.weights == device_bytes(params) and found.cache == device_bytes(state.cache)
    needed = report.argument_size_in_bytes + report.temp_size_in_bytes
    assert found.need == pytest.approx(needed, rel=0.1)


def test_a_mesh_of_devices_that_are_not_here_counts_as_one_of_those_that_are():
    s = tiny.grpo(mesh=config.Mesh(fsdp=2, expert=2, tensor=2))
    real = memory.table(s, tiny.MOE, sharding.make_mesh(s.mesh), capacity=10**9)
    described = memory.table(s, tiny.MOE, sharding.abstract_mesh([1, 2, 2, 2, 1], "cpu", "none"), capacity=10**9)
    assert described == real


# -- Proposals and the command

WIDE = dataclasses.replace(tiny.DENSE, d_model=2048, d_ff=8192, segments=(config.Segment("dense", 24),))


def test_what_does_not_fit_is_given_settings_that_do(tmp_path, capsys):
    """Weights, master weights and moments of 2.2B parameters are more than a T4 holds; over 8 devices they are not."""
    file = tmp_path / "wide.py"
    file.write_text(
        "import dataclasses\nfrom tests import tiny\nfrom r1jax import config\nfrom tests.test_plan import WIDE\n"
        "def config():\n    return tiny.grpo(model=WIDE, mesh=tiny.config.Mesh(data=8, fsdp=1), sequence_length=1024,\n"
        "        sampling=tiny.config.Sampling(max_new_tokens=512))\n"
    )
    out, chart = tmp_path / "plan.json", tmp_path / "plan.png"
    words = [str(file), "--topology", "a100:8", "--no-compile", "--price", "2", "--answer-tokens", "100"]
    assert cli.main(["plan", *words, "--out", str(out), "--chart", str(chart)]) == 0
    told = json.loads(out.read_text())
    (stage,) = told["stages"]
    assert stage["fits"] and stage["mesh"]["data"] == 8 and chart.stat().st_size > 10_000
    assert stage["dollars"]["base"] == pytest.approx(2 * stage["device_hours"]["base"])
    assert stage["step_seconds"] * 2 == pytest.approx(stage["round_seconds"])
    capsys.readouterr()

    assert cli.main(["plan", *words[:2], "v5e:8", *words[3:], "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("r1jax: error: wide does not fit v5e:2x4: it needs") and "these fit: --mesh." in said
    (stage,) = json.loads(out.read_text())["stages"]
    assert not stage["fits"] and stage["need_bytes"] > stage["capacity_bytes"]
    flags = stage["proposals"][0]["flags"].split()
    assert cli.main(["plan", *words[:2], "v5e:8", *words[3:], *flags]) == 0


def test_proposals_go_by_what_they_cost():
    s = tiny.grpo(model=WIDE, mesh=config.Mesh(data=1, fsdp=8), sequence_length=1024, micro_batch=8)
    t = topology.parse("v5e:8")
    found = propose.proposals(s, WIDE, t, 8, 8, Efficiency(), wanted=2)
    costs = [p.seconds * propose.PER_CHANGE ** len(p.changes) for p in found]
    assert len(costs) == 2 and costs[0] <= costs[1]
    for p in found:
        assert p.memory.fits and p.memory.need <= propose.capacity(t)[0]
        again = propose.estimate(p.stage, p.model, t, [getattr(p.stage.mesh, axis) for axis in sharding.AXES])
        assert again == p.memory


TAUGHT = """
from dataclasses import dataclass, field
from r1jax import config as c
from tests import tiny


@dataclass(frozen=True)
class Taught(c.Pipeline):
    teacher: c.SFT = field(default_factory=tiny.sft)
    student: c.GRPO = field(default_factory=lambda: tiny.grpo(model=tiny.DENSE, teacher="teacher"))


def config():
    return Taught()
"""


def test_a_teacher_and_a_critic_are_planned_with_their_own_weights(tmp_path):
    """A teacher is as large as it is, not as its student is; and both stay beside every program that is compiled."""
    file, out = tmp_path / "taught.py", tmp_path / "plan.json"
    file.write_text(TAUGHT)
    assert cli.main(["plan", str(file), "--topology", "h100:1", "--no-compile", "--out", str(out)]) == 0
    _, student = json.loads(out.read_text())["stages"]
    own = sum(4 * math.prod(s.shape) for s in jax.tree.leaves(decoder.specs(tiny.MOE), is_leaf=is_spec))
    assert student["estimate_bytes"]["teacher"] == own != student["estimate_bytes"]["weights"]
    t, command = topology.parse("h100:1"), Plan("x", "h100:1", compile=False)
    for changes, part in (({"teacher": "x"}, "teacher"), ({"advantage": "gae"}, "critic")):
        found = report.plan("x", tiny.grpo(**changes), tiny.MOE, t, command, lambda text: None)
        without = dataclasses.replace(found, memory=dataclasses.replace(found.memory, **{part: 0}))
        more = vars(found.memory)[part]
        assert more >= found.memory.weights > 0
        for name in ("update", "decode"):
            program = Program(name, 1.0)
            assert found.peak(program) == without.peak(program) + more


@pytest.mark.slow
def test_what_is_too_large_is_given_settings_that_compile_small_enough():
    """Eight copies of the weights do not fit, eight parts do: by the estimate, and of these by what XLA says."""
    model = dataclasses.replace(tiny.DENSE, d_model=256, d_ff=1024, segments=(config.Segment("dense", 8),))
    s = tiny.grpo(model=model, mesh=config.Mesh(data=8, fsdp=1), micro_batch=8)
    large = topology.of_this_machine("cpu", 8, 1e12, 1e11, 2**40)
    copies, parts = (propose.estimate(s, model, large, shape).need for shape in ([8, 1, 1, 1, 1], [1, 8, 1, 1, 1]))
    assert parts < 0.6 * copies
    between = topology.of_this_machine("cpu", 8, 1e12, 1e11, (parts + copies) / 2 / propose.USABLE)
    command = Plan("wide", "here", answer_tokens=8.0, prompt_tokens=4.0)
    found = report.plan("wide", s, model, between, command, lambda text: None)
    assert not found.fits and not found.programs and len(found.proposed) == 2  # what rests there is more than there is
    assert "these fit: --mesh." in found.why_not
    offer = found.proposals[0]
    again = report.plan("wide", offer.stage, offer.model, between, command, lambda text: None)
    assert again.fits and again.need <= again.memory.capacity < found.need
    assert [p.need for p in again.programs] == [p.need for p in found.proposed]


def test_devices_that_are_not_here_have_no_kernels_and_no_warning():
    """A plan says nothing of what is not installed where it runs."""
    kernels._find.cache_clear()
    with warnings.catch_warnings(), sharding.using(sharding.abstract_mesh([1, 8, 1, 1, 1], "gpu", "h800"), sharding.TRAIN):
        warnings.simplefilter("error")
        assert kernels.tokamax() is None and not grouped._has_kernels()
    with sharding.using(sharding.abstract_mesh([1, 8, 1, 1, 1], "tpu", "v5p"), sharding.TRAIN):
        assert grouped._has_kernels()


def test_devices_of_one_description_are_one_slice():
    class Described:
        platform, process_index = "tpu", 3

    class Real(Described):
        slice_index = 1

    class GPU(Described):
        platform = "gpu"

    assert [programs.node(d()) for d in (Described, Real, GPU)] == [0, 1, 3]


def test_a_mesh_of_another_size_is_refused_with_what_it_is(tmp_path, capsys):
    file = tmp_path / "small.py"
    file.write_text("from tests import tiny\n\ndef config():\n    return tiny.grpo(mesh=tiny.config.Mesh(fsdp=3))\n")
    assert cli.main(["plan", str(file), "--topology", "h100:8", "--no-compile"]) == 2
    assert "the mesh has 3 devices and the topology 8" in capsys.readouterr().err


def test_the_cache_of_devices_that_are_not_here_has_their_type(monkeypatch):
    """A CPU's is float32."""
    model, mesh = dataclasses.replace(tiny.DENSE, dtype="bfloat16"), sharding.make_mesh(config.Mesh(fsdp=1))
    for platform, dtype in (("gpu", "bfloat16"), ("cpu", "float32")):
        monkeypatch.setattr(sharding, "platform_of", lambda mesh, platform=platform: platform)
        _, state = Sampler(model, config.Engine(slots=2), mesh, end_ids=(1,)).abstract(16, 8)
        assert {x.dtype.name for x in jax.tree.leaves(state.cache)} == {dtype}


def test_groups_along_a_part_of_an_axis():
    line = "replica_groups=mesh['a'=8] {'a':(2)4}"
    assert hlo._groups(line).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert np.array_equal(hlo._groups("replica_groups=[2,4]<=[4,2]T(1,0)"), [[0, 2, 4, 6], [1, 3, 5, 7]])


RECIPE = """
import dataclasses
from tests import tiny
from r1jax.config import Bill


def config():
    stands_for = {"zero": "R1-Zero", "cold": "SFT data creation", "rl": "R1"}
    recipe = tiny.Recipe(bill=Bill(price_per_hour=3.0, counterparts=stands_for))
    return dataclasses.replace(recipe, student=dataclasses.replace(recipe.student, model=None, init="/nowhere"))
"""


def test_of_a_recipe_every_stage_is_planned_beside_what_was_published(tmp_path, capsys, monkeypatch):
    recipe, out = tmp_path / "recipe.py", tmp_path / "plan.json"
    monkeypatch.setenv("COLUMNS", "160")
    recipe.write_text(RECIPE)
    assert cli.main(["plan", str(recipe), "--topology", "h100:1", "--no-compile", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "not planned: student: " in said and "/nowhere" in said
    told = {stage["stage"]: stage for stage in json.loads(out.read_text())["stages"]}
    assert list(told) == [name for name in tiny.Recipe().stages() if name != "student"] and told["cold"]["answers"] == 8 * 4
    hours = {name: stage["device_hours"]["base"] for name, stage in told.items()}
    assert told["zero"]["dollars"]["base"] == pytest.approx(3 * hours["zero"])
    table = said[said.index("the recipe, GPU-hours") :]
    for line, base, theirs in (
        ("R1-Zero: zero", hours["zero"], "101,000 │ $202,000"),
        ("SFT data creation: cold", hours["cold"], "5,000 │  $10,000"),
        ("R1: rl", hours["rl"], "41,000 │  $82,000"),
        ("all of these", hours["zero"] + hours["cold"] + hours["rl"], "147,000 │ $294,000"),
    ):
        (row,) = (row for row in table.splitlines() if line in row)
        assert theirs in row and f"{base:.3g}" in row, row


def test_rows_are_planned_by_hand():
    """Two batches of 16 answers, 3 tokens each, on a chip that reads its weights and its cache and nothing else takes time."""
    t = topology.parse("h100:1")
    stage, model = tiny.rejection(sampling=config.Sampling(max_new_tokens=12)), tiny.MOE
    command = Plan("x", "h100:1", efficiency=dataclasses.replace(E, reward_seconds=0.0))
    found = rows.plan("cold", stage, model, t, command)
    assert (found.prompts, found.samples, found.answer) == (8, 4, 3.0) and found.fits
    layout, prompt = roofline.Layout(), stage.engine.max_prompt_tokens / 4
    load = roofline.Load(answers=16, updates=1, prompt=prompt, answer=3.0, longest=3.0, slots=16, group=4, workers=1)
    once = roofline.estimate(model, t, layout, load, command.efficiency).phases["rollout"].seconds
    assert found.seconds == pytest.approx(2 * once) and found.hours.base == pytest.approx(2 * once / 3600)
    unbounded = dataclasses.replace(stage, sources=(dataclasses.replace(stage.sources[0], limit=None),))
    with pytest.raises(config.ConfigError, match="source 'tiny' has no limit"):
        rows.plan("cold", unbounded, model, t, command)
