"""What a run cost, over its resumes; the bill of a pipeline; and the FLOPs that are counted for it."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
from rich.console import Console

from r1jax.config import GRPO, Bill, Engine, Sampling
from r1jax.observe import ledger
from r1jax.observe.energy import Meter
from r1jax.observe.ledger import Ledger
from r1jax.plan import flops, spent
from r1jax.types import Trajectories


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def read(path: Path) -> dict:
    return json.loads((path / "ledger.json").read_text())


def test_phases_add_up_over_resumes(tmp_path):
    clock = Clock()
    first = Ledger(tmp_path, devices=8, timer=clock)
    first.add("rollout", 2.0, 100, 7e9)
    first.add("rollout", 3.0, 50)
    clock.now += 6
    first.save(step=10)
    again = Ledger(tmp_path, devices=4, resumed_at=10, timer=clock)
    again.add("rollout", 1.0)
    again.add("save", 0.5, flops=1.0)
    clock.now += 2
    again.save()
    assert read(tmp_path) == {
        "phases": {
            "rollout": {"seconds": 6.0, "tokens": 150, "flops": 7e9}, "save": {"seconds": 0.5, "tokens": 0, "flops": 1.0},
        },
        "seconds": 8.0, "redone_seconds": 0.0, "devices": 4, "resumes": 1, "saved": {"10": 6.0},
    }  # fmt: skip


def test_time_that_a_resume_threw_away_is_told(tmp_path):
    clock = Clock()

    def attempt(resumed_at, *times):
        """Each of ``times``: (seconds, step of a save or None)."""
        book = Ledger(tmp_path, resumed_at=resumed_at, timer=clock)
        for seconds, step in times:
            clock.now += seconds
            book.save(step)
        clock.now += 1000  # it was killed, and the time after is nobody's

    attempt(None, (5, 10), (4, None))  # killed 4 s after its save
    attempt(10, (3, 20), (2, 30))  # the save of step 30 was not whole when it was killed
    attempt(20, (1, 30), (0, None))
    found = read(tmp_path)
    assert found["seconds"] == 15 and found["redone_seconds"] == 4 + 2 and found["resumes"] == 2
    # Nothing was saved: all of it was for nothing.
    Ledger(tmp_path, resumed_at=None, timer=clock).save()
    assert read(tmp_path)["redone_seconds"] == 6 + 15


def test_a_ledger_without_these_fields_is_continued(tmp_path):
    (tmp_path / "ledger.json").write_text(
        json.dumps({"phases": {"update": {"seconds": 2.0, "tokens": 5}}, "devices": 1, "resumes": 3})
    )
    again = Ledger(tmp_path, resumed_at=4)
    again.add("update", 1.0, 1, 2.0)
    again.save()
    assert read(tmp_path)["phases"] == {"update": {"seconds": 3.0, "tokens": 6, "flops": 2.0}}
    assert read(tmp_path)["redone_seconds"] == 0 and read(tmp_path)["resumes"] == 4


# -- The bill

STAGE = {
    "phases": {
        "rollout": {"seconds": 1800.0, "tokens": 36_000, "flops": 9e15},
        "update": {"seconds": 900.0, "tokens": 30_000, "flops": 27e15},
        "save": {"seconds": 300.0, "tokens": 0, "flops": 0},
    },
    "seconds": 3600.0, "redone_seconds": 360.0, "devices": 4, "resumes": 1, "joules": {"cpu": 3.6e6, "gpu": 7.2e6},
}  # fmt: skip
BILL = Bill(price_per_hour=2.0, peak_tflops=100.0, counterparts={"zero": "R1-Zero", "cold": "SFT data creation"})


def test_what_a_stage_comes_to():
    told = ledger.account(STAGE, BILL)
    assert told["device_hours"] == 4 and told["redone_hours"] == 0.4 and told["dollars"] == 8 and told["kwh"] == 3
    assert told["idle_share"] == 0.25  # 900 of 3600 s neither sample nor update
    assert (told["tokens_sampled"], told["tokens_per_s_sampled"]) == (36_000, 20)
    assert (told["tokens_trained"], told["tokens_per_s_trained"]) == (30_000, pytest.approx(30_000 / 900))
    assert told["flops"] == 36e15 and told["utilisation"] == pytest.approx(36e15 / 3600 / 4e14)
    rollout = told["phases"]["rollout"]
    assert rollout["device_hours"] == 2 and rollout["utilisation"] == pytest.approx(9e15 / 1800 / 4e14)


def test_devices_are_at_work_in_every_phase_that_counts_their_arithmetic():
    """A reward model's scores are made by the devices that train."""
    for phase in ("rollout", "preference", "score", "update", "eval", "rewrite"):
        stage = {"phases": {phase: {"seconds": 3.0, "tokens": 0, "flops": 1e12}}, "seconds": 4.0, "devices": 1}
        assert ledger.account(stage, Bill())["idle_share"] == 0.25, phase


def test_what_cannot_be_told_is_absent():
    told = ledger.account({k: v for k, v in STAGE.items() if k != "joules"}, Bill())
    assert not {"kwh", "dollars", "utilisation"} & told.keys() and "utilisation" not in told["phases"]["rollout"]


def test_the_bill_of_a_pipeline(tmp_path):
    short = {**STAGE, "phases": {}, "seconds": 900.0, "devices": 1, "redone_seconds": 0.0}
    for name, found in {"zero": STAGE, "zero.1": short, "zero.1b": STAGE, "cold": short}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "ledger.json").write_text(json.dumps(found))
    out = io.StringIO()
    ledger.show(tmp_path, ["zero", "cold", "later"], BILL, Console(file=out, width=160))
    told = read(tmp_path)
    assert list(told["stages"]) == ["zero", "cold"]
    assert told["put_aside"]["device_hours"] == 0.25  # zero.1b is no stage that was put aside
    assert told["total"]["device_hours"] == 4 + 0.25 + 0.25 and told["total"]["dollars"] == 9
    assert told["published"]["R1-Zero"] == {
        "ours": {"device_hours": 4.0, "redone_hours": 0.4, "flops": 36e15, "kwh": 3.0, "dollars": 8.0},
        "published": {"device_hours": 101_000, "dollars": 202_000},
    }
    assert "R1" not in told["published"]
    said = out.getvalue()
    assert "R1-Zero: 4.000 device-hours here, $8.00; published 101,000 H800 hours, $202,000" in said
    assert "R1 in all: published 147,000 H800 hours, $294,000" in said
    assert "rollout 50%" in said and "put aside" in said and "25%" in said
    assert "planned" not in said
    # Beside what was predicted of the same run.
    hours = {"low": 1.0, "base": 3.5, "high": 9.0}
    planned = [{"stage": name, "device_hours": hours} for name in ("zero", "later")]
    (tmp_path / "plan.json").write_text(json.dumps({"stages": planned}))
    out = io.StringIO()
    ledger.show(tmp_path, ["zero", "cold", "later"], BILL, Console(file=out, width=160))
    told = read(tmp_path)
    assert told["stages"]["zero"]["planned_hours"] == told["total"]["planned_hours"] == 3.5
    assert "planned_hours" not in told["stages"]["cold"] and "R1-Zero: 4.000 device-hours" in out.getvalue()
    lines = out.getvalue().splitlines()
    heading, row = (next(line.split() for line in lines if word in line) for word in ("planned", "zero  "))
    assert heading[:2] == ["hours", "planned"] and row[:3] == ["zero", "4.000", "3.500"]


# -- Energy


def test_energy_counts_packages_and_over_the_end_of_their_counter(tmp_path):
    for name, now in {"intel-rapl:0": 900, "intel-rapl:0:0": 50, "intel-rapl:1": 10, "dtpm": 1}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{now}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("1000\n")
    with Meter(tmp_path, gpu_watts=lambda: None) as meter:
        (tmp_path / "intel-rapl:0/energy_uj").write_text("100\n")  # 200 on, over the end at 1000
        (tmp_path / "intel-rapl:1/energy_uj").write_text("15\n")
        (tmp_path / "intel-rapl:0:0/energy_uj").write_text("999\n")  # a part of a package counts there already
        meter.read()
        assert meter.joules() == {"cpu": pytest.approx(205e-6)}


def test_energy_of_gpus_is_power_over_time(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("r1jax.observe.energy.time.monotonic", clock)
    watts = iter([100.0, 200.0, 50.0])
    meter = Meter(tmp_path, gpu_watts=lambda: next(watts))
    meter.read()
    for seconds in (5, 10):
        clock.now += seconds
        meter.read()
    assert meter.joules() == {"gpu": 200 * 5 + 50 * 10}
    assert Meter(tmp_path, gpu_watts=lambda: None).joules() == {"gpu": 0.0}


def test_where_no_energy_can_be_read_the_field_is_absent(tmp_path):
    with Meter(tmp_path / "none", gpu_watts=lambda: None) as meter:
        assert meter.joules() == {}
        book = Ledger(tmp_path, meter=meter)
        book.save()
    assert "joules" not in read(tmp_path)


# -- FLOPs


def trajectories(prompts: list[int], answers: list[int]) -> Trajectories:
    n = len(prompts)
    empty = np.zeros((n, 1), np.int32)
    return Trajectories(
        empty, np.array(prompts, np.int32), np.array(prompts, np.int32) + np.array(answers, np.int32), empty, empty,
        np.zeros(n, np.int8), np.zeros(n, np.int32), np.zeros(n, np.int32),
    )  # fmt: skip


PROMPTS, ANSWERS = [5, 5, 3, 3], [4, 1, 7, 2]


@pytest.mark.parametrize("model", [tiny.MOE, tiny.DENSE])
def test_sampling_costs_what_a_sampler_does_step_by_step(model):
    steps = flops.prefill_steps([5, 3], together=2), flops.decode_steps(PROMPTS, ANSWERS, slots=4)
    expected = sum(float(s.flops(model).sum()) for s in steps)
    assert spent.sampled(model, trajectories(PROMPTS, ANSWERS), samples=2) == expected


def test_a_round_costs_its_passes():
    """With each query's keys counted one by one."""
    model = tiny.MOE
    pairs = tokens = 0
    for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        own = range(0 if i % 2 == 0 else prompt, prompt + answer)  # the second answer of a group shares its prompt
        pairs += sum(position + 1 for position in own)
        tokens += len(own)
    once = flops.forward_flops(model, tokens, pairs, sum(ANSWERS))
    settings = {"init": "x", "group": 2, "sampling": Sampling(max_new_tokens=8), "engine": Engine(max_prompt_tokens=8)}

    def told(fresh: bool = False, **more) -> dict:
        stage = GRPO(**settings, **{"minibatches": 4, "kl_beta": 0.1, **more})
        return spent.of_round(stage, model, trajectories(PROMPTS, ANSWERS), fresh_reference=fresh)

    # The first of four updates takes its own log-probs of pi_old; the reference's are another pass unless it is pi_old.
    assert told()["score"] == 1.75 * once and told()["update"] == 3 * once
    assert told(fresh=True)["score"] == 0.75 * once
    assert told(old_logprobs="sampler")["score"] == once and told(old_logprobs="sampler", fresh=True)["score"] == 0.75 * once
    assert told(kl_beta=0.0)["score"] == 0.75 * once and told(kl_beta=0.0, minibatches=1)["score"] == 0
    # A critic values every token before the updates and learns as the policy does, without logits; the KL in its rewards wants
    # log-probs of the first update too. A teacher scores once.
    values = flops.forward_flops(model, tokens, pairs, 0)
    critic = told(advantage="gae", kl_beta=0.0)
    assert critic == {"rollout": told()["rollout"], "score": 0.75 * once + values, "update": 3 * (once + values)}
    assert told(advantage="gae", kl_in_reward=True)["score"] == 2 * once + values
    stage = GRPO(**settings, minibatches=1, kl_beta=0.0, teacher="t")
    taught = spent.of_round(stage, model, trajectories(PROMPTS, ANSWERS), fresh_reference=False, teacher=tiny.DENSE)
    assert taught["score"] == spent.passed(tiny.DENSE, trajectories(PROMPTS, ANSWERS), 2) and taught["update"] == 3 * once
    apart = told(share_prompts=False)["update"]
    assert apart == 3 * flops.forward_flops(model, sum(PROMPTS + ANSWERS), sum(
        math.comb(p + a + 1, 2) for p, a in zip(PROMPTS, ANSWERS, strict=True)), sum(ANSWERS))  # fmt: skip


def test_supervised_training_costs_three_passes():
    model = tiny.DENSE
    assert spent.trained(model, [4, 9], predictions=6) == 3 * flops.forward_flops(model, 13, 10 + 45, 6)
