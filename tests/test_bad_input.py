"""People's mistakes: each is one line on stderr that says what is wrong and where, exit code 2, and nothing is lost."""

import json
import sys

import jax
import pytest

from r1jax import cli, config, rundir
from r1jax.config.loading import load_config
from r1jax.plan import memory
from r1jax.rollout import Sampler
from r1jax.stages import workspace

TINY = '''
"""GRPO on one small layer, whose devices each hold a row."""
from r1jax.config import GQA, GRPO, Engine, Eval, Log, Model, Sampling, Source, Text, Workers

def config():
    return GRPO(
        model=Model(vocab_size=264, d_model=16, d_ff=16, attention=GQA(n_heads=2, n_kv_heads=1, head_dim=8)),
        text=Text(tokenizer="bytes", template="{{ prompt }}"),
        sources=(SOURCE,),
        steps=1, questions=2, group=4, minibatches=1, micro_batch=8, sequence_length=24, preflight=False,
        sampling=Sampling(max_new_tokens=4), engine=Engine(slots=8, max_prompt_tokens=8),
        eval=Eval(every=0), log=Log(tensorboard=False), workers=Workers(count=1),
    )
'''
ROW = '{"prompt": "1+1=", "answer": 2}\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for variable in ("R1JAX_DEBUG", "R1JAX_COORDINATOR", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def write(folder, source='Source(path="rows.jsonl", name="sums")', rows=ROW):
    (folder / "tiny.py").write_text(TINY.replace("SOURCE", source))
    (folder / "rows.jsonl").write_text(rows)


def train(capsys, *options, config="tiny.py"):
    """The one line that ``r1jax train`` leaves on stderr, after a check that it is one and that the exit code is 2."""
    code = cli.main(["train", config, "--run-dir", "run", *options])
    line = capsys.readouterr().err
    assert code == 2, line
    assert line.startswith("r1jax: error: ") and line.count("\n") == 1, line
    assert "Traceback" not in line
    return line


# -- The config


def test_config_that_is_missing(folder, capsys):
    assert "no config 'nowhere.py'" in train(capsys, config="nowhere.py")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def config(:\n", "tiny.py:1: SyntaxError"),
        ("def config():\n    return 1 / 0\n", "tiny.py:2: ZeroDivisionError"),
        ("def config():\n    return 7\n", "config() returned int"),
        ("from r1jax.config import Model\ndef config():\n    return Model(vocab=3)\n", "tiny.py:3: TypeError"),
        ("configuration = 1\n", "defines no function config()"),
    ],
)
def test_config_that_is_malformed(folder, capsys, text, said):
    (folder / "tiny.py").write_text(text)
    assert said in train(capsys)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--steps", "0"], "steps is 0"),
        (["--steps", "many"], "steps"),
        (["--micro-batch", "3"], "micro_batch is 3, not a multiple of the 8 devices"),
        (["--group", "1"], "group is 1"),
        (["--mesh.tensor", "3"], "does not divide the 8 devices"),
        (["--mesh.fsdp", "16"], "needs 16 devices, 8 were found"),
        (["--mesh.tensor", "8"], "not a multiple of the 8 devices of mesh axes ('tensor',)"),
        (["--model.vocab-size", "256"], "the tokenizer has 262 entries and the model 256"),
        (["--engine.max-prompt-tokens", "3", "--mesh.fsdp", "1"], "prompts are longer than engine.max_prompt_tokens 3"),
        (["--engine.max-prompt-tokens", "64"], "set sequence_length to at least 68"),
        (["--text.tokenizer", "nowhere"], "there is no file nowhere"),
        (["--text.template", "{{ prompt"], "template"),
        (["--init", "elsewhere"], "elsewhere"),
        (["--engine.buckets", "8", "10"], "engine.buckets ends at 10"),
        (["--length-schedule", "5", "0"], "length_schedule is ((5, 0),)"),
        (["--optimizer.b2", "1"], "optimizer.b1 and b2 must be in [0, 1)"),
        (["--importance-cap", "-1"], "clip_low, clip_high, kl_beta and importance_cap must be >= 0"),
        (["--workers.max-error-share", "2"], "workers.max_error_share is 2"),
        (["--log.sample-every", "-3"], "log.sample_every must be >= 0"),
        (["--frozen", "nothing"], "matches no parameter"),
        (["--eval.every", "1"], "holds nothing out"),
        (["--workers.count", "0"], "workers.count"),
        (["--modle.d-ff", "3"], "no option --modle.d-ff"),
    ],
)
def test_settings_that_cannot_work(folder, capsys, options, said):
    write(folder)
    assert said in train(capsys, *options)


# -- Rows and rewards


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (ROW + "\n" + ROW + "{'prompt': 'a'}\n", "rows.jsonl:4: not JSON"),
        (ROW + '{"prompt": 3, "answer": 2}\n', "rows.jsonl:2: 'prompt' is int"),
        (ROW + '{"prompt": "1+1="}\n', "rows.jsonl:2: no 'answer'"),
        (ROW + "[1, 2]\n", "rows.jsonl:2: a row is a JSON object"),
        ("", "rows.jsonl has no rows"),
        ("\n\n", "rows.jsonl has no rows"),
    ],
)
def test_rows_of_a_file(folder, capsys, rows, said):
    write(folder, rows=rows)
    assert said in train(capsys)
    assert (folder / "rows.jsonl").read_text() == rows


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ('Source(path="nowhere.jsonl")', "path 'nowhere.jsonl' is no file or folder here"),
        ('Source(path="rows.txt")', "path 'rows.txt' is no file or folder here"),
        ('Source(path="nothing.here:rows")', "cannot import nothing.here"),
        ('Source(path="r1jax.data.arithmetic:row")', "has no function 'row'"),
        ('Source(options={"digit": 3})', "does not take (split, **{'digit': 3})"),
        ('Source(options={"digits": 1})', "digits is 1"),
        ('Source(path="rows.jsonl", options={"digits": 3})', "options.digits: FileOptions has no such field"),
        ('Source(path="rows.jsonl", split="dev")', "no split 'dev'"),
        ('Source(path="rows.jsonl", rewards={"acuracy": 1.0})', "reward 'acuracy': not a built-in"),
        (
            'Source(path="rows.jsonl", rewards={"nothing.here:f": 1.0})',
            "reward 'nothing.here:f': importing nothing.here",
        ),
        ('Source(path="rows.jsonl", rewards={"nowhere.py:f": 1.0})', "there is no file"),
        ('Source(path="rows.jsonl", rewards={"json:laods": 1.0})', "json has no 'laods'"),
        ('Source(path="rows.jsonl", wieght=2)', "unexpected keyword argument 'wieght'"),
    ],
)
def test_sources_and_rewards(folder, capsys, source, said):
    write(folder, source)
    assert said in train(capsys)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ('Source(path="reasoning_gym:chain_some")', "no task 'chain_some'; did you mean chain_sum"),
        ('Source(path="reasoning_gym:chain_sum", options={"terms": 3})', "does not take options {'terms': 3}"),
        ('Source(path="reasoning_gym:chain_sum", options={"min_terms": 9, "max_terms": 2})', "does not take options"),
    ],
)
def test_reasoning_gym(folder, capsys, source, said):
    pytest.importorskip("reasoning_gym")
    write(folder, source)
    assert said in train(capsys)


# -- The run directory


def test_run_directory_that_cannot_be_written(folder, capsys):
    write(folder)
    (folder / "file").touch()
    assert "cannot make the run directory file/run" in train(capsys, "--run-dir", "file/run")


def test_run_directory_that_holds_something_else(folder, capsys):
    write(folder)
    (folder / "run").mkdir()
    (folder / "run/thesis.tex").write_text("years of work")
    assert "already holds thesis.tex" in train(capsys)
    assert [p.name for p in (folder / "run").iterdir()] == ["thesis.tex"]


def test_run_of_another_config(folder, capsys):
    write(folder)
    described = config.to_json(load_config("tiny.py")[1])
    rundir.create("tiny", described, folder / "run").close()
    (folder / "run/checkpoints/1").mkdir(parents=True)
    line = train(capsys, "--optimizer.lr", "0.5", "--model.d-ff", "32")
    assert "model.d_ff was 16, now 32; optimizer.lr was 3e-06, now 0.5" in line
    assert json.loads((folder / "run/config.json").read_text()) == described


def test_a_mistake_can_be_corrected_in_the_same_run_directory(folder, capsys):
    write(folder)
    assert "micro_batch is 3" in train(capsys, "--micro-batch", "3")
    assert "frozen: 'nothing' matches no parameter" in train(capsys, "--micro-batch", "8", "--frozen", "nothing")


def test_run_without_a_config_that_can_be_read(folder, capsys):
    write(folder)
    (folder / "run").mkdir()
    (folder / "run/config.json").write_text('{"steps": ')
    assert "config.json is not JSON" in train(capsys)
    assert (folder / "run/config.json").read_text() == '{"steps": '


def test_initial_weights_that_are_not_there(folder, capsys):
    write(folder)
    text = (folder / "tiny.py").read_text()
    start, end = text.index("model=Model"), text.index("text=Text")
    (folder / "tiny.py").write_text(text[:start] + 'init="nowhere/run@3",' + text[end:])
    assert "nowhere/run" in train(capsys)


# -- Memory


def test_too_large_a_batch_is_refused_before_weights_are_made(folder, capsys, monkeypatch):
    write(folder)
    monkeypatch.setattr(memory, "available", lambda mesh: 400_000)
    monkeypatch.setattr(workspace.Trainer, "init_params", lambda *_: pytest.fail("weights were made"))
    line = train(capsys, "--micro-batch", "64")
    assert "too large: it needs " in line and "391 KiB are there" in line
    assert "these fit: micro_batch 16 (needs" in line


def test_running_out_of_memory(folder, capsys, monkeypatch):
    def generate(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 25769803776 bytes.")

    write(folder)
    monkeypatch.setattr(Sampler, "generate", generate)
    monkeypatch.setattr(memory, "available", lambda mesh: 2**30)
    line = train(capsys, "--mesh.fsdp", "1")
    assert "out of memory in phase rollout; 24 GiB could not be had" in line
    assert "of 1 GiB per device" in line and line.endswith("set engine.slots below 8\n")
