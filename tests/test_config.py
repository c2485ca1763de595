"""Config values: JSON and back, what differs, and mistakes that must not survive construction."""

import dataclasses
import json
from dataclasses import dataclass, field

import pytest

from r1jax.config import (
    CONFIG_671B,
    GQA,
    GRPO,
    MLA,
    SFT,
    ConfigError,
    Engine,
    Eval,
    Mesh,
    Model,
    MoE,
    Optimizer,
    Pipeline,
    Sampling,
    Segment,
    Source,
    diff,
    from_json,
    to_json,
)
from r1jax.config.loading import list_configs, load_config

EXPERTS = Model(segments=(Segment("dense", 1), Segment("moe", 2)), attention=MLA(q_rank=24), moe=MoE(n_groups=2))


@dataclass(frozen=True)
class Two(Pipeline):
    warm: SFT = field(default_factory=lambda: SFT(model=EXPERTS))
    rl: GRPO = field(
        default_factory=lambda: GRPO(
            init="warm",
            sources=(Source(options={"digits": 2, "signs": ["+", "-"]}), Source(name="other", rewards={"pkg.mod:f": 0.5})),
            length_schedule=((0, 64), (10, 128)),
            eval=Eval(sampling=Sampling(temperature=0.0, stop=("</answer>",))),
        )
    )


@pytest.mark.parametrize("config", [CONFIG_671B, EXPERTS, SFT(init="runs/a@3"), Two()], ids=["671B", "model", "sft", "two"])
def test_a_config_survives_json(config):
    text = json.dumps(to_json(config))
    assert from_json(type(config), json.loads(text)) == config


@pytest.mark.parametrize("name", [name for name, _ in list_configs()])
def test_a_shipped_config_survives_json(name):
    _, config = load_config(name)
    again = from_json(type(config), json.loads(json.dumps(to_json(config))))
    assert again == config


def test_absent_fields_keep_their_defaults():
    assert from_json(GRPO, {"init": "run", "group": 4}) == GRPO(init="run", group=4)
    assert from_json(Model, {"attention": {"kind": "mla", "kv_rank": 8}}).attention == MLA(kv_rank=8)
    assert from_json(Model, {"attention": {"head_dim": 8}}).attention == GQA(head_dim=8)


@pytest.mark.parametrize(
    "value, message",
    [
        ({"init": "run", "stepps": 3}, "config.stepps: GRPO has no such field"),
        ({"init": "run", "steps": "3"}, "config.steps: expected int, got '3'"),
        ({"init": "run", "steps": True}, "config.steps: expected int, got True"),
        ({"init": "run", "steps": 3.0}, "config.steps: expected int, got 3.0"),
        ({"init": "run", "preflight": 1}, "config.preflight: expected bool, got 1"),
        ({"init": "run", "optimizer": 3}, "config.optimizer: expected an object with the fields of Optimizer"),
        ({"init": "run", "optimizer": {"lr": "1"}}, "config.optimizer.lr: expected float, got '1'"),
        ({"init": "run", "sources": {"path": "x"}}, "config.sources: expected a list"),
        ({"init": "run", "sources": [{"path": 3}]}, "config.sources.0.path: expected str, got 3"),
        ({"init": "run", "sources": [{"rewards": {"format": "1"}}]}, "config.sources.0.rewards.format: expected float"),
        ({"init": "run", "normalize": "mean"}, "config.normalize: 'mean' is not one of 'sequence', 'token', 'constant'"),
        (
            {"model": {"attention": {"kind": "mla", "n_kv_heads": 2}}},
            "config.model.attention.n_kv_heads: MLA has no such",
        ),
        (3, "config: expected an object"),
    ],
)
def test_json_that_does_not_fit_is_refused_with_its_place(value, message):
    with pytest.raises(ConfigError) as caught:
        from_json(GRPO, value)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_callable_cannot_be_written():
    with pytest.raises(ConfigError, match="name callables by import path"):
        to_json(Source(options={"f": len}))


def test_diff_names_the_leaves_that_changed():
    old = GRPO(init="run", optimizer=Optimizer(lr=1e-6), sources=(Source(), Source(name="b")))
    new = dataclasses.replace(
        old, steps=7, optimizer=Optimizer(lr=2e-6), sources=(Source(), Source(name="b", weight=2.0)), frozen=("embed",)
    )
    assert diff(to_json(old), to_json(new)) == [
        ("sources.1.weight", 1.0, 2.0),
        ("steps", 100, 7),
        ("optimizer.lr", 1e-6, 2e-6),
        ("frozen", [], ["embed"]),
    ]
    assert diff({"a": 1}, {"b": 1}) == [("a", 1, None), ("b", None, 1)]
    assert diff(to_json(old), to_json(old)) == []


def test_671b_has_61_layers_of_which_58_hold_experts():
    assert CONFIG_671B.n_layers == 61
    assert sum(s.count for s in CONFIG_671B.segments if s.ff == "moe") == 58


MISTAKES = {
    "moe segment without moe": (lambda: Model(segments=(Segment("moe"),)), "model.moe is None"),
    "no segment": (lambda: Model(segments=()), "model.segments is empty"),
    "empty segment": (lambda: Model(segments=(Segment(), Segment("dense", 0))), "model.segments.1.count is 0"),
    "two mtp modules": (lambda: Model(mtp_depth=2), "model.mtp_depth is 2"),
    "heads": (lambda: Model(attention=GQA(n_heads=4, n_kv_heads=3)), "n_heads 4 is not a multiple"),
    "odd rope": (lambda: Model(attention=MLA(rope_dim=15)), "15"),
    "odd head": (lambda: Model(attention=GQA(head_dim=7)), "7"),
    "top_k": (lambda: Model(moe=MoE(n_experts=4, top_k=5)), "model.moe.top_k is 5"),
    "top_k of groups": (lambda: Model(moe=MoE(n_experts=8, n_groups=4, top_groups=1, top_k=3)), "only 2 experts"),
    "mesh": (lambda: Mesh(data=-1), "mesh sizes"),
    "two free axes": (lambda: Mesh(data=0, fsdp=0), "mesh sizes"),
    "temperature": (lambda: Sampling(temperature=-0.1), "temperature is -0.1"),
    "top_p": (lambda: Sampling(top_p=0.0), "top_p is 0.0"),
    "empty stop": (lambda: Sampling(stop=("",)), "stop holds an empty string"),
    "no answer": (lambda: Sampling(max_new_tokens=0), "max_new_tokens is 0"),
    "buckets": (lambda: Engine(buckets=(64, 32)), "engine.buckets is (64, 32)"),
    "learning rate": (lambda: Optimizer(lr=-1.0), "optimizer.lr"),
    "no model": (lambda: GRPO(), "model is None"),
    "steps": (lambda: GRPO(init="run", steps=0), "steps is 0"),
    "no source": (lambda: GRPO(init="run", sources=()), "sources is empty"),
    "two sources of one name": (lambda: GRPO(init="run", sources=(Source(), Source())), "sources share a name"),
    "weights": (lambda: GRPO(init="run", sources=(Source(weight=0.0),)), "weight 0"),
    "group of one": (lambda: GRPO(init="run", group=1), "group is 1"),
    "greedy group": (lambda: GRPO(init="run", sampling=Sampling(temperature=0.0)), "sampling.temperature is 0"),
    "schedule": (lambda: GRPO(init="run", length_schedule=((5, 10), (0, 20))), "length_schedule"),
    "row too short": (lambda: GRPO(init="run", sequence_length=511), "set sequence_length to at least 512"),
    "row too short for the schedule": (lambda: GRPO(init="run", length_schedule=((0, 8), (9, 300))), "at least 556"),
}


@pytest.mark.parametrize("build, message", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_refused_in_one_line(build, message):
    with pytest.raises(ConfigError) as caught:
        build()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_pipelines_seed_replaces_its_stages():
    assert {name: stage.seed for name, stage in Two(seed=5).stages().items()} == {"warm": 5, "rl": 5}
    assert list(Two().stages()) == ["warm", "rl"]
