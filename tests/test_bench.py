"""r1jax bench: sides by turns, the same work for each, figures by hand, and the three commands on the smallest model."""

import dataclasses
import itertools
import json
import subprocess
import sys
from importlib import util
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from r1jax import cli, sharding
from r1jax.bench import fastest, limits, measure, results
from r1jax.bench import rollout as bench_rollout
from r1jax.bench import subject as bench_subject
from r1jax.bench.measure import Peer, Turn
from r1jax.bench.prompts import ragged_lengths, texts
from r1jax.bench.results import ALL, Limits, Need, Product, Report, Side
from r1jax.bench.subject import open_subject
from r1jax.config import Mesh, Model
from r1jax.config.bench import BenchRollout
from r1jax.config.shapes import SHAPES
from r1jax.data import tokenizer

TINY = ["--model", "random:tiny", "--rounds", "2", "--mesh.fsdp", "1"]
LIMITS = Limits("abacus", 2, (Product("jax", "float32", 4, 8, 8, 50.0), Product("torch", "float32", 9, 8, 8, 100.0),
                              Product("jax", "bfloat16", 9, 8, 8, 400.0)), 30.0)  # fmt: skip
SIDE = Side(
    "r1jax", "float32", ({"prefill": 1.0, "decode": 4.0}, {"prefill": 3.0, "decode": 5.0}, {"prefill": 2.0, "decode": 9.0}),
    {"prefill": Need(8, 100.0, 60.0, 1.0), "decode": Need(40, 500.0, 120.0, 2.0), ALL: Need(41)}, 30.0,
    compile_seconds=20.0, compilations=3, late_compilations=0, notes={"tokens": 48.0},
)  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Limits are probed for no time, for nothing here depends on what they are."""
    monkeypatch.setattr(fastest, "SECONDS", 0.0)
    monkeypatch.setattr(limits, "COPIED", 1 << 16)
    yield


def bench(tmp_path, *words) -> Report:
    """What ``r1jax bench`` writes."""
    file = tmp_path / "out.json"
    assert cli.main(["bench", *words, *TINY, "--out", str(file)]) == 0
    return results.read(file)


# -- The figures


def test_sides_take_turns_and_the_first_round_does_not_count():
    calls = []

    def side(name, seconds):
        each = iter(seconds)
        return lambda: (calls.append(name), Turn({"all of it": next(each)}))[1]

    turns = measure.interleave({"a": side("a", [90, 1, 2]), "b": side("b", [80, 3, 4])}, 2, lambda line: None)
    assert calls == ["a", "b"] * 3
    assert [t.seconds["all of it"] for t in turns["b"]] == [80, 3, 4]


def test_figures_by_hand():
    prefill, both = results.figures(SIDE, "prefill", LIMITS), results.figures(SIDE, ALL, LIMITS)
    assert (prefill["seconds"], prefill["seconds_min"], prefill["seconds_max"]) == (2, 1, 3)
    # Two devices of 100 FLOP/s, the faster of the two products, and 30 B/s.
    assert prefill["mfu"] == pytest.approx(100 / 2 / 200) and prefill["bandwidth_share"] == pytest.approx(60 / 2 / 60)
    assert prefill["tokens_per_s"] == 4 and prefill["bound_reached"] == 0.5
    # Of the sums 5, 8 and 11, and not the sum of the medians, 7.
    assert (both["seconds"], both["bound_seconds"]) == (8, 3)
    assert both["mfu"] == pytest.approx(600 / 8 / 200) and both["tokens_per_s"] == 41 / 8
    in_bf16 = dataclasses.replace(SIDE, dtype="bfloat16")
    assert results.figures(in_bf16, "prefill", LIMITS)["mfu"] == pytest.approx(100 / 2 / 800)


def test_a_phase_without_a_need_has_its_seconds_only():
    side = dataclasses.replace(SIDE, need={"decode": SIDE.need["decode"]})
    assert set(results.figures(side, "prefill", LIMITS)) == {"seconds", "seconds_min", "seconds_max"}


def test_a_report_comes_back_from_its_file(tmp_path):
    other = dataclasses.replace(SIDE, name="hf float32", rounds=({"prefill": 10.0, "decode": 14.0},), compilations=None)
    report = Report("rollout", {"model": "m"}, {"d_model": 8}, 7, {"jax": "0"}, LIMITS, (SIDE, other))
    results.write(report, tmp_path / "x.json")
    assert results.read(tmp_path / "x.json") == report
    assert json.loads((tmp_path / "x.json").read_text())["ratios"] == {"hf float32": 24 / 8}


def test_the_fastest_of_long_runs_counts():
    now, steps = itertools.count(), []
    # A step takes 5 of the clock's units while it is warming up, and later 2.
    clock = SimpleNamespace(now=0.0)

    def step(state):
        clock.now += 0.05 if len(steps) < 20 else 0.02
        steps.append(next(now))
        return state

    found = fastest.fastest(step, 0, lambda state: None, clock=lambda: clock.now)
    assert found == pytest.approx(0.05)  # SECONDS is 0 here, so that three single steps are looked at


def test_no_run_that_was_too_short_counts(monkeypatch):
    monkeypatch.setattr(fastest, "SECONDS", 1.0)
    clock, waits = SimpleNamespace(now=0.0), []

    def step(state):
        clock.now += 0.3
        return state

    assert fastest.fastest(step, 0, waits.append, clock=lambda: clock.now) == pytest.approx(0.3)
    assert len(waits) == 1 + 2 + 3  # 1 and 2 steps were too few; then three times 4


# -- The same work


def test_ragged_lengths_have_the_mean_they_should_have():
    lengths = ragged_lengths(np.random.default_rng(0), 128, 64)
    assert np.mean(lengths) == pytest.approx(16, abs=0.1)
    assert min(lengths) >= 2 and max(lengths) <= 64
    assert np.median(lengths) < 14 and max(lengths) > 40  # most are short and a few long
    assert ragged_lengths(np.random.default_rng(0), 128, 64) == lengths


def test_texts_have_the_tokens_they_should_have():
    bytes_ = tokenizer.byte_tokenizer()
    made = texts(np.random.default_rng(0), 6, 9, bytes_.encode, bytes_.decode)
    assert len(set(made)) == 6 and {len(bytes_.encode(text)) for text in made} == {9}
    with pytest.raises(ValueError, match="--prompt-tokens"):
        texts(np.random.default_rng(0), 40, 1, bytes_.encode, bytes_.decode)  # there are not so many letters


def ragged_load() -> bench_rollout.Load:
    command = BenchRollout(model="random:tiny", prompts=8, prompt_tokens=5, new_tokens=16, lengths="ragged")
    return bench_rollout.Load.of(command, 264)


def test_ragged_answers_are_four_to_a_slot_and_the_bound_knows_them():
    load = ragged_load()
    assert load.slots == 2 and sum(load.lengths) == pytest.approx(8 * 4, abs=1)
    need = load.needs(SHAPES["tiny"], Limits("abacus", 1, (Product("jax", "float32", 1, 1, 1, 1e9),), 1e9))
    assert need["decode"].tokens == sum(load.lengths) - 8 and need["prefill"].tokens == 8 * 5
    assert need[ALL].tokens == sum(load.lengths)


def test_our_sampler_is_given_each_answers_own_cap(monkeypatch):
    given = []

    class Recorder:
        def __init__(self, *args, **options):
            self.specs, self.shardings = None, None
            assert options["end_ids"] == ()

        def load(self, params, copy):
            pass

        def generate(self, prompts, sampling, *, samples, caps):
            given.append((prompts, sampling.max_new_tokens, caps))
            return SimpleNamespace(length=np.array(caps) + 5, prompt_length=np.full(len(caps), 5))

    load = ragged_load()
    monkeypatch.setattr(bench_rollout, "Sampler", Recorder)
    subject = SimpleNamespace(model=Model(), mesh=None, seed=0, load=lambda specs, shardings: None)
    turn = bench_rollout.sampling(subject, load)()
    assert given == [(load.prompts, 1, [1] * 8), (load.prompts, 16, load.lengths)]
    assert turn.notes["tokens"] == sum(load.lengths)


@pytest.mark.parity
def test_transformers_counts_the_tokens_that_are_wanted_and_no_others(tmp_path):
    subject = open_subject(BenchRollout(model="random:tiny", mesh=Mesh(fsdp=1)))
    subject.export(tmp_path / "model")
    load = ragged_load()
    job = {"work": "rollout", "prompts": load.prompts, "lengths": load.lengths, "slots": load.slots, "dtype": "float32",
           "device": "cpu", "directory": str(tmp_path / "model"), "seed": 0, "shapes": [(3, 8, 16)]}  # fmt: skip
    peer = Peer(job)
    turns = [peer.turn(), peer.turn()]
    peer.close()
    assert [t.notes["tokens"] for t in turns] == [sum(load.lengths)] * 2 and peer.peak_bytes > 0
    assert [(p.package, p.rows, p.inner, p.outer) for p in peer.products] == [("torch", 3, 8, 16)]


# -- The commands


@pytest.mark.parity
def test_rollout(tmp_path, capsys):
    words = ("--prompts", "6", "--slots", "4", "--prompt-tokens", "5", "--new-tokens", "8", "--against", "hf")
    report = bench(tmp_path, "rollout", *words)
    ours, theirs = report.sides
    assert ours.notes == theirs.notes == {"tokens": 6 * 8}
    assert [ours.need[phase].tokens for phase in ("prefill", "decode", ALL)] == [6 * 5, 6 * 7, 6 * 8]
    assert len(ours.rounds) == len(theirs.rounds) == 2 and ours.compilations >= 2 and ours.late_compilations == 0
    assert {p.package for p in report.limits.products if p.dtype == "float32"} == {"jax", "torch"}
    assert report.settings["prompts"] == 6 and report.versions.keys() == {"r1jax", "jax", "jaxlib", "torch", "transformers"}
    shown = capsys.readouterr().out
    assert "hf float32 takes" in shown and "MFU" in shown


@pytest.mark.parity
def test_update_of_both_sides_is_the_same(tmp_path):
    words = ("--sequences", "6", "--sequence-tokens", "9", "--micro-batch", "4", "--against", "hf")
    report = bench(tmp_path, "update", *words)
    ours, theirs = report.sides
    assert theirs.notes == pytest.approx(ours.notes, rel=1e-5) and ours.notes["grad_norm"] > 0.01
    assert ours.need["forward"].tokens == 6 * 9
    assert ours.need["backward, step"].flops == 2 * ours.need["forward"].flops and ours.late_compilations == 0


GRPO = ("grpo", "--questions", "2", "--group", "4", "--micro-batch", "4", "--prompt-tokens", "7", "--new-tokens", "6")


def test_grpo(tmp_path):
    report = bench(tmp_path, *GRPO)
    (ours,) = report.sides
    assert ours.notes == {"tokens": 2 * 4 * 6}
    assert set(ours.rounds[0]) == {"rollout", "reward", "score", "update", "other"} and ours.late_compilations == 0
    assert ours.need["rollout"].tokens == ours.need["update"].tokens == 2 * 4 * 6


@pytest.mark.parity
@pytest.mark.skipif(util.find_spec("trl") is None, reason="trl is not installed: pip install 'r1jax[bench]'")
def test_grpo_against_trl(tmp_path):
    report = bench(tmp_path, *GRPO, "--against", "trl")
    ours, theirs = report.sides
    assert ours.notes == theirs.notes == {"tokens": 2 * 4 * 6}
    assert set(theirs.rounds[0]) == {"rollout", "reward", "update"}


# -- Mistakes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rolout"], "did you mean rollout"),
        (["rollout", "--model", "random:huge"], "no shape 'huge'"),
        (["rollout", "--model", "nowhere/at-all/here"], "nowhere"),
        (["rollout", "--rounds", "0"], "--rounds is 0"),
        (["rollout", "--out", "speed.txt"], "NAME.json"),
        (["rollout", "--lengths", "ragged", "--new-tokens", "4"], "at least 8"),
        (["rollout", "--against", "trl"], "hf"),
        (["update", "--against-dtype", "float32", "float32"], "each type once"),
        (["update", "--sequences", "1"], "at least 2"),
        (["grpo", "--micro-batch", "12"], "multiple of --group 8"),
    ],
)
def test_a_mistake_is_one_line(words, said, capsys):
    assert cli.main(["bench", *words]) == 2
    out, err = capsys.readouterr()
    assert said in err and err.count("\n") == 1


@pytest.mark.parametrize(("work", "said"), [("rollout", "lower --slots, --prompts"), ("update", "lower --micro-batch")])
def test_running_out_of_memory_is_one_line(work, said, monkeypatch, capsys):
    def fail(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 13.50GiB.\n  at 0x1")

    monkeypatch.setattr(bench_subject.Subject, "load", fail)
    assert cli.main(["bench", work, "--model", "random:tiny", "--mesh.fsdp", "1"]) == 2
    *_, told = capsys.readouterr().err.splitlines()
    assert "out of memory; 13.50GiB could not be had; " in told and said in told


def test_a_missing_package_is_one_line_that_names_the_extra(monkeypatch, capsys):
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    assert cli.main(["bench", *GRPO, "--model", "random:tiny", "--against", "trl"]) == 2
    assert capsys.readouterr().err.count("pip install 'r1jax[bench]'") == 1


def test_a_peer_that_cannot_says_why():
    with pytest.raises(ValueError, match="process ended: KeyError: 'dancing'"):
        Peer({"work": "dancing", "dtype": "float32"})


def test_other_packages_processes_load_no_jax():
    code = "import sys, r1jax.bench.peers; print([m for m in sys.modules if m in ('jax', 'flax', 'torch')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_of_two_probes_the_faster_counts_product_by_product():
    slow, fast = (dataclasses.replace(p, flops_per_s=x) for p, x in zip(LIMITS.products, (60.0, 70.0), strict=False))
    again = Limits("abacus", 2, (fast, slow), 20.0)
    found = limits.best(LIMITS, again)
    assert [p.flops_per_s for p in found.products] == [60.0, 100.0, 400.0] and found.bytes_per_s == 30.0
    assert limits.best(LIMITS, dataclasses.replace(again, bytes_per_s=40.0)).bytes_per_s == 40.0


def test_a_mesh_of_two_has_twice_the_limit():
    found = limits.probe(SHAPES["tiny"], sharding.make_mesh(Mesh(fsdp=2)), 3)
    assert found.devices == 2 and [p.rows for p in found.products] == [3, limits.UPDATE_ROWS] * 2
    assert found.flops_per_s("float32") == 2 * max(p.flops_per_s for p in found.products if p.dtype == "float32")
