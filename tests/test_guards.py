"""What stops a run or warns of it: rules over metrics, updates that are not finite, phases that do not end."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from r1jax import cli, config, sharding, types
from r1jax.checkpoint import Checkpointer
from r1jax.config import Guards, Watchdog
from r1jax.data import sft
from r1jax.observe import guards as rules
from r1jax.observe.metrics import read_metrics
from r1jax.observe.phases import Phases
from r1jax.observe.watchdog import Watching
from r1jax.stages.guarding import Guarding, broken
from r1jax.train.update import Trainer

ROOT = Path(__file__).parent.parent


# -- Rules over metrics


def rows(**series):
    """Rows of updates with these metrics; None leaves one out."""
    made = zip(*series.values(), strict=True)
    names = [name.replace("_", "/", 1) for name in series]
    return [{"loss": 1.0} | {n: v for n, v in zip(names, each, strict=True) if v is not None} for each in made]


def held(rows, **changes):
    """The rules that hold after each row."""
    guards = Guards(window=2, **changes)
    return [sorted(rules.holding(guards, rows[: i + 1])) for i in range(len(rows))]


def test_a_reward_that_falls_by_half():
    # The best window is (0.8, 1.0): mean 0.9, variance 0.02. (0.3, 0.5) has mean 0.4 and variance 0.02, so that three standard
    # errors are 3 sqrt(0.04 / 2) = 0.42; (0.5, -0.1) has mean 0.2 and variance 0.18, and three are 3 sqrt(0.2 / 2) = 0.95.
    assert held(rows(reward_total=[0.8, 0.8, 1.0, 0.3, 0.5, -0.1])) == [[], [], [], [], ["reward"], []]
    calm = rows(reward_total=[0.8, 0.8, 0.9, 0.3, 0.3, 0.9, 0.9])
    # After row 5: the best earlier window 0.85 (variance 0.005), now 0.3: fell by 0.55 >= 0.425 and >= 3 x 0.05.
    assert held(calm) == [[], [], [], [], ["reward"], [], []]
    assert held(calm, reward_drop=0.7) == [[]] * 7  # by 0.65 of it
    assert held(calm, reward_drop=0) == [[]] * 7
    why = rules.holding(Guards(window=2), calm[:5])["reward"]
    assert why == "reward/total has fallen to 0.3 over the last 2 updates, from 0.85 over as many at its best"


def test_a_reward_below_zero_falls_further():
    assert held(rows(reward_total=[-0.4, -0.4, -0.5, -0.5]))[-1] == []  # by a quarter
    assert held(rows(reward_total=[-0.4, -0.4, -0.7, -0.7]))[-1] == ["reward"]
    assert held(rows(reward_total=[0.2, 0.2, 0.9, 0.9]))[-1] == []


def test_kl_entropy_and_length():
    assert held(rows(kl=[0.5, 1.4, 0.7, 0.5])) == [[], [], ["kl"], []]  # means 0.5, 0.95, 1.05, 0.6
    assert held(rows(kl=[3.0])) == [["kl"]]  # an explosion is not waited for
    assert held(rows(kl=[3.0]), kl_max=0) == [[]]
    assert held(rows(entropy=[0.0, 0.0, 0.02, 0.0])) == [[], ["entropy"], [], []]
    assert held(rows(entropy=[0.0, 0.0]), entropy_min=0) == [[], []]
    # From 100 to 15 tokens a fall by 85 %, to 30 one by 70 %.
    assert held(rows(length_mean=[100, 100, 15, 15]))[-1] == ["length"]
    assert held(rows(length_mean=[100, 100, 30, 30]))[-1] == []


def test_rows_without_the_metric_and_values_that_are_not_finite_count_for_nothing():
    given = rows(kl=[0.5, None, float("nan"), 1.4, 0.7])
    assert held(given) == [[], [], [], [], ["kl"]]
    assert held([{"eval/pass@1": 0.0}, {"loss": 1.0}]) == [[], []]


def test_a_rule_speaks_once_until_it_has_not_held_for_a_window():
    spoken, made = [], []
    for value in [0.5, 3.0, 3.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0, 3.0]:
        row = {"loss": 1.0, "kl": value}
        now = rules.holding(Guards(window=2), [*made, row])
        spoken.append(rules.beginning(Guards(window=2), made, now))
        made += [row | {rules.MARK + name: 1.0 for name in now}, {"eval/pass@1": 0.5}]
    # Means: 0.5, 1.75, 3, 1.5, 0, 1.5, 1.5, 0, 0, 1.5. After one row below 1 it says nothing new, after two it does.
    assert spoken == [[], ["kl"], [], [], [], [], [], [], [], ["kl"]]


def test_guards_that_cannot_work():
    for changes, said in (
        ({"window": 1}, "guards.window at least 2"),
        ({"not_finite": -1}, "guards.not_finite must be >= 0"),
        ({"reward_drop": 1.5}, "guards.reward_drop is 1.5; it is a share"),
        ({"kl_max": -1.0}, "guards.kl_max and guards.entropy_min"),
    ):
        with pytest.raises(config.ConfigError, match=said):
            Guards(**changes)
    with pytest.raises(config.ConfigError, match="watchdog.stall_seconds"):
        Watchdog(stall_seconds=-1)


# -- Updates that are not finite


def batch(**changes):
    tokens = np.arange(6, dtype=np.int32).reshape(1, 2, 3)
    mask = tokens > 1
    fields = {"tokens": tokens, "positions": tokens, "segments": tokens, "targets": tokens, "mask": mask}
    return jax.tree.map(jnp.asarray, types.PackedBatch(**fields | {"weights": mask.astype(np.float32)} | changes))


def test_so_many_in_a_row_stop_and_an_update_between_them_does_not(tmp_path):
    guarding = Guarding(Guards(not_finite=2), tmp_path, [], skipped=5, in_a_row=1)
    for step, skipped in enumerate([5, 6, 6, 7], 10):
        guarding.took(step, batch(), 1, 4.0)
        guarding.saw(step, {"update/skipped": skipped, "loss": 1.0})
        guarding.saw(step, {"eval/pass@1": 0.5})
        assert not guarding.reason and guarding.in_a_row == (step in (11, 13))
    advantages = np.array([[[0, np.nan, 1], [2, np.inf, 3]]], np.float32)
    guarding.took(14, batch(advantages=advantages), 1, 4.0)
    guarding.took(15, batch(), 1, 4.0)  # the same round's
    for step in (14, 15):
        guarding.saw(step, {"update/skipped": step - 6, "loss": float("nan"), "grad/norm": float("inf")})
    file = tmp_path / "not-finite-14.npz"
    assert guarding.reason.startswith("2 updates in a row (guards.not_finite) had a loss or a gradient that is not finite, at ")
    assert "at step 14 loss nan and norm inf; none was applied; " in guarding.reason
    assert "1 of its advantages are not finite, the first at [0, 1, 1]" in guarding.reason and str(file) in guarding.reason
    assert "\n" not in guarding.reason and sorted(tmp_path.iterdir()) == [file]
    with np.load(file) as saved:
        np.testing.assert_array_equal(saved["advantages"], advantages)
        assert saved["tokens"].dtype == np.int32 and (int(saved["step"]), float(saved["denominator"])) == (14, 4.0)
        assert "ref_logprobs" not in saved and np.isnan(saved["loss"])
    assert "come from the model" in broken({"mask": np.array([True, False]), "old_logprobs": np.array([0.0, np.nan])})


def test_a_limit_of_zero_never_stops_and_a_stopped_run_counts_anew(tmp_path):
    for limit, in_a_row, stops in ((0, 0, [False, False]), (2, 2, [False, True]), (2, 1, [True, True])):
        guarding = Guarding(Guards(not_finite=limit), tmp_path, [], skipped=2, in_a_row=in_a_row)
        for step, stopped in zip((3, 4), stops, strict=True):
            guarding.took(step, batch(), 1, 4.0)
            guarding.saw(step, {"update/skipped": step, "loss": 1.0, "grad/norm": float("nan")})
            assert bool(guarding.reason) == stopped


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path


def train(capsys, made, *more):
    """``r1jax train`` of the stage that ``made`` is the text of: exit code, stdout, stderr."""
    text = f"import tiny\nfrom r1jax import config as c\n\n\ndef config():\n    return {made}\n"
    Path("small.py").write_text(text)
    code = cli.main(["train", "small.py", "--run-dir", "run", *more])
    told = capsys.readouterr()
    return code, told.out, told.err


def params_of(stage, step):
    trainer = Trainer(stage, stage.model, sharding.make_mesh(stage.mesh))
    reader = Checkpointer(Path("run/checkpoints").absolute(), read_only=True)
    state, meta = reader.restore(trainer.abstract(), step)
    reader.close()
    return [np.asarray(x).tobytes() for x in jax.tree.leaves((state.params, state.opt_state))], meta


def test_a_run_that_overflows_stops_with_its_batch_and_its_last_good_weights(folder, capsys):
    made = (
        "tiny.sft(model=tiny.DENSE, steps=20, checkpoint=c.Checkpoint(every=1, keep=9), "
        "optimizer=c.Optimizer(lr=1e38, warmup_steps=0))"
    )
    code, out, err = train(capsys, made)
    assert code == 3 and err.count("\n") == 1, err
    assert err.startswith("r1jax: stopped: 3 updates in a row") and err.endswith("saved at step 4 of run\n")
    assert "all numbers of its batch are finite" in err and "run/not-finite-4.npz" in err
    assert [row["update/skipped"] for row in tiny.metrics(folder / "run")] == [0, 1, 2, 3]
    assert "guard/" not in (folder / "run/metrics.jsonl").read_text()
    with np.load("run/not-finite-4.npz") as saved:
        assert saved["tokens"].shape == saved["mask"].shape and saved["mask"].any()
    # What the first update made is what the last checkpoint holds.
    optimizer = config.Optimizer(lr=1e38, warmup_steps=0)
    stage = tiny.sft(model=tiny.DENSE, steps=20, optimizer=optimizer)
    good, last = params_of(stage, 1), params_of(stage, 4)
    assert good[0] == last[0] and last[1]["cursor"]["not_finite"] == 3
    # The same command goes on with other batches, and counts anew.
    code, out, err = train(capsys, made)
    assert code == 3 and "going on from step 4" in out and err.endswith("saved at step 7 of run\n")
    code, out, err = train(capsys, made, "--guards.not-finite", "0", "--steps", "9")
    assert code == 0 and [row["update/skipped"] for row in tiny.metrics(folder / "run")] == [0, *range(1, 9)]


def test_a_rule_warns_once_or_stops_and_the_run_can_go_on(folder, capsys):
    made = "tiny.grpo(model=tiny.DENSE, steps=6, guards=c.Guards(window=2, entropy_min=100.0))"
    code, out, err = train(capsys, made, "--guards.stop", "entropy")
    assert code == 3 and err.count("\n") == 1 and err.endswith("saved at step 2 of run\n")
    assert err.startswith("r1jax: stopped: guard entropy: entropy is ") and "over the last 2 updates, below 100; " in err
    assert out.count("warning: guard entropy") == 1
    assert [row.get("guard/entropy") for row in read_metrics(Path("run"))] == [None, 1.0]
    code, out, err = train(capsys, made, "--guards.stop", "entropy")
    assert code == 0 and "going on from step 2" in out and "warning: guard" not in out and err == ""
    assert [row.get("guard/entropy") for row in read_metrics(Path("run"))] == [None, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert "guard/kl" not in (folder / "run/metrics.jsonl").read_text()


# -- Phases that do not end


class Timer:
    now = 100.0

    def __call__(self):
        return self.now


def test_a_stall_is_named_once_with_the_stacks_of_all_threads(tmp_path):
    timer, waiting = Timer(), threading.Event()
    phases = Phases(timer)
    watching = Watching(Watchdog(stall_seconds=60, compile_seconds=600), phases, lambda: 7, tmp_path / "logs", process=3)

    def reward_that_hangs():
        waiting.wait()

    thread = threading.Thread(target=reward_that_hangs)
    thread.start()
    try:
        timer.now += 61
        line = watching.look()
        assert line.startswith("no progress for 61 s (watchdog.stall_seconds is 60) in between two phases after step 7 on ")
        with phases.open("reward", 4, "answers"):
            assert watching.look() is None
            timer.now += 59
            phases.advance(1, 0)
            timer.now += 59
            assert watching.look() is None
            timer.now += 2
            line = watching.look()
            assert line.startswith("no progress for 61 s (watchdog.stall_seconds is 60) in phase reward after step 7 on ")
            assert line.endswith(f"; {tmp_path / 'logs/stalled-3.txt'} says what each thread does") and "\n" not in line
            timer.now += 1000
            assert watching.look() is None  # said already
            with phases.open("compile", None, ""):
                timer.now += 599
                assert watching.look() is None
                timer.now += 2
                assert "(watchdog.compile_seconds is 600) in phase compile" in watching.look()
            timer.now += 61
            assert "in phase reward" in watching.look()
    finally:
        waiting.set()
        thread.join()
    stacks = (tmp_path / "logs/stalled-3.txt").read_text()
    assert stacks.count("== ") == 4 and "phase reward after step 7, 61 s without progress" in stacks
    assert "in reward_that_hangs" in stacks and "in test_a_stall_is_named_once_with" in stacks


def test_a_stall_is_named_where_nothing_can_be_written(tmp_path):
    timer = Timer()
    (tmp_path / "logs").touch()
    watching = Watching(Watchdog(stall_seconds=60), Phases(timer), lambda: 7, tmp_path / "logs")
    timer.now += 61
    assert "the stacks of its threads could not be written to" in watching.look()


def test_without_a_limit_nothing_is_said(tmp_path):
    timer = Timer()
    phases = Phases(timer)
    watching = Watching(Watchdog(stall_seconds=60, compile_seconds=0), phases, lambda: 7, tmp_path)
    with phases.open("compile", None, ""):
        timer.now += 1e9
        assert watching.look() is None
    with Watching(Watchdog(stall_seconds=0), phases, lambda: 7, tmp_path):
        assert not any(thread.name == "watchdog" for thread in threading.enumerate())


STALLED = """
    import sys, time
    from pathlib import Path
    from r1jax.config import Watchdog
    from r1jax.observe.phases import Phases
    from r1jax.observe.watchdog import Watching
    phases = Phases()
    with Watching(Watchdog(stall_seconds=0.2, stop=sys.argv[1] == "stop"), phases, lambda: 7, Path("logs")):
        with phases.open("reward", 4, "answers"):
            while sys.argv[1] == "stop" or not Path("logs/stalled-0.txt").exists():
                time.sleep(0.05)
            time.sleep(0.5)
    print("ended")
"""


def test_a_stalled_process_goes_on_or_ends_as_it_is_told(tmp_path):
    for word, code, out, said in (("stop", 3, "", "r1jax: stopped: "), ("wait", 0, "ended\n", "r1jax: warning: ")):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(STALLED), word], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (code, out)
        assert done.stderr.count("\n") == 1 and done.stderr.startswith(f"{said}no progress for 0 s"), done.stderr
        assert "in phase reward after step 7" in done.stderr
        stacks = tmp_path / "logs/stalled-0.txt"
        assert 'File "<string>"' in stacks.read_text()
        stacks.unlink()


def test_the_watchdog_of_a_run_sees_its_phases(folder, capsys, monkeypatch):
    """Rows that take long to come stall the update that they are for."""
    said, seen, taken, take = [], threading.Event(), [], sft.take

    def heard(line):
        said.append(line)
        if "in phase update after step 1 on " in line:  # on a busy machine another phase may take long as well
            seen.set()

    def slow(*args):
        taken.append(args)
        assert len(taken) != 2 or seen.wait(300)
        return take(*args)

    monkeypatch.setattr("r1jax.supervise.warn", heard)
    monkeypatch.setattr(sft, "take", slow)
    made = "tiny.sft(model=tiny.DENSE, steps=2, watchdog=c.Watchdog(stall_seconds=1.0))"
    code, out, err = train(capsys, made)
    assert code == 0, err
    assert seen.is_set(), said
    assert "in slow" in (folder / "run/logs/stalled-0.txt").read_text()
    assert json.loads((folder / "run/finished.json").read_text())["step"] == 2
