"""The micro-batch that the config leaves to the memory that is free."""

import dataclasses
import json

import jax
import pytest
import tiny

from r1jax import cli, config, sharding
from r1jax.plan import memory, micro_batch, shortage

MODEL = dataclasses.replace(tiny.DENSE, d_model=32)
STAGE = tiny.grpo(model=MODEL, micro_batch="auto")  # 8 sequences an update


def need(rows, mesh):
    return memory.table(dataclasses.replace(STAGE, micro_batch=rows), MODEL, mesh).need


def chosen(capacity, mesh, stage=STAGE, before=None):
    return micro_batch.choose(stage, MODEL, mesh, before=before, capacity=capacity).micro_batch


def one_device():
    return sharding.make_mesh(config.Mesh(), jax.devices()[:1])


def test_the_largest_that_fits_is_chosen():
    alone, shared = one_device(), sharding.make_mesh(config.Mesh(data=2, fsdp=2, tensor=2))
    assert chosen(need(5, alone), alone) == chosen(need(6, alone) - 1, alone) == 5
    assert chosen(need(8, shared) - 1, shared) == 4  # devices that share a batch


def test_never_more_than_an_update_has_or_a_device_profits_from(monkeypatch):
    assert chosen(2**40, one_device()) == 8
    assert chosen(2**40, one_device(), tiny.sft(model=MODEL, micro_batch="auto", batch=5)) == 5
    eight = sharding.make_mesh(config.Mesh(fsdp=8))
    assert chosen(2**40, eight, tiny.sft(model=MODEL, micro_batch="auto", batch=9)) == 16  # 9 rows on 8 devices
    monkeypatch.setattr(micro_batch, "TOKENS_ON_CPU", 15)  # and a row has 16
    assert chosen(2**40, one_device()) == 1
    assert chosen(2**40, sharding.make_mesh(config.Mesh(data=2, context=4))) == 2 * 3


def test_where_nothing_fits_the_advice_is_that_of_the_smallest():
    mesh = one_device()
    stage = micro_batch.choose(STAGE, MODEL, mesh, capacity=10_000)
    assert stage.micro_batch == 1
    with pytest.raises(config.ConfigError, match="too large: it needs .* and 9.77 KiB are there"):
        shortage.check(memory.table(stage, MODEL, mesh, capacity=10_000), stage, MODEL, mesh)


def test_a_resumed_run_keeps_its_own_while_that_fits():
    mesh = one_device()
    assert chosen(2**40, mesh, before=5) == 5
    assert chosen(need(4, mesh), mesh, before=5) == 4
    assert chosen(2**40, sharding.make_mesh(config.Mesh(fsdp=8)), before=5) == 8
    fixed = dataclasses.replace(STAGE, micro_batch=3)
    assert micro_batch.choose(fixed, MODEL, mesh, before=5, capacity=1) is fixed


def test_a_run_says_and_records_what_it_chose(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.py").write_text(
        f"import sys; sys.path.insert(0, {str(tiny.FILE.parent)!r})\nimport tiny\n"
        "def config():\n    return tiny.sft(model=tiny.DENSE, micro_batch=3)\n"
    )
    flags = ["train", "c.py", "--micro-batch", "auto"]
    said = "micro_batch auto: 8 rows of 32 tokens"
    assert cli.main([*flags, "--dry-run"]) == 0
    assert said in capfd.readouterr().out
    assert cli.main([*flags, "--steps", "1", "--run-dir", "run"]) == 0
    assert said in capfd.readouterr().out
    kept = json.loads((tmp_path / "run/config.json").read_text())
    assert (kept["micro_batch"], kept["chosen"]) == ("auto", {"micro_batch": 8})
    monkeypatch.setattr(micro_batch, "TOKENS_ON_CPU", 64)  # a machine that would choose 2
    assert cli.main([*flags, "--steps", "2", "--run-dir", "run"]) == 0
    assert said in capfd.readouterr().out
    assert json.loads((tmp_path / "run/config.json").read_text())["chosen"] == {"micro_batch": 8}


@pytest.mark.parametrize("value", ["0", "-1", "most"])
def test_other_values_are_one_line(value, tmp_path, capfd):
    source = f"import sys; sys.path.insert(0, {str(tiny.FILE.parent)!r})\nimport tiny\nconfig = tiny.sft\n"
    (tmp_path / "c.py").write_text(source)
    assert cli.main(["train", str(tmp_path / "c.py"), "--micro-batch", value]) == 2
    out, err = capfd.readouterr()
    assert "micro" in err and "auto" in err and not out
