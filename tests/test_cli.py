"""The command line: every setting is an option, a mistake is one line and exit code 2, and --help is quick."""

import dataclasses
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from r1jax import cli, config, rundir
from r1jax.config import ConfigError, Pipeline, RejectionSampling, commands, diff, observe, to_json
from r1jax.config.base import GuardStop
from r1jax.config.loading import list_configs, load_config

CONFIGS = {
    "zero": '''
        """GRPO on a mixture of experts."""
        from r1jax.config import GRPO, MLA, Eval, Model, MoE, Sampling, Segment, Source

        def config():
            return GRPO(
                model=Model(segments=(Segment("dense", 1), Segment("moe", 2)), attention=MLA(), moe=MoE()),
                sources=(
                    Source(options={"digits": 2, "signs": ["+", "-"], "carry": True, "levels": [[1, 2], [3]]}),
                    Source(name="other", rewards={"my_rewards.short:f": 0.5}),
                ),
                eval=Eval(sampling=Sampling(temperature=0.0)),
                length_schedule=((0, 64), (10, 128)),
            )
        ''',
    "two": '''
        """SFT, then GRPO."""
        from __future__ import annotations
        from dataclasses import dataclass, field
        from r1jax.config import GRPO, SFT, Model, Pipeline

        @dataclass(frozen=True)
        class Two(Pipeline):
            sft: SFT = field(default_factory=lambda: SFT(model=Model()))
            grpo: GRPO = field(default_factory=lambda: GRPO(init="sft"))

        def config():
            return Two()
        ''',
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    for name, text in CONFIGS.items():
        (tmp_path / f"configs/{name}.py").write_text(textwrap.dedent(text).lstrip())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for variable in ("R1JAX_DEBUG", "R1JAX_COORDINATOR", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def changed(name, *args):
    """What the options changed, as (dotted field, old, new)."""
    return diff(to_json(load_config(name)[1]), to_json(cli.parse_train([name, *args])[1]))


@pytest.mark.parametrize("name", [*CONFIGS, *(name for name, _ in list_configs())])
def test_one_field_of_every_config_can_be_changed(folder, name):
    _, config = load_config(name)
    stages = config.stages() if isinstance(config, Pipeline) else {"": config}
    expected = []
    for prefix, stage in ((f"{stage}." if stage else "", value) for stage, value in stages.items()):
        if isinstance(stage, RejectionSampling):
            expected.append((f"{prefix}samples", stage.samples, 9))
        else:
            expected += [(f"{prefix}optimizer.lr", stage.optimizer.lr, 0.5), (f"{prefix}steps", stage.steps, 12345)]
    words = [word for field, _, new in expected for word in (f"--{field}", str(new))]
    assert sorted(changed(name, *words)) == sorted(expected)
    for field, old, new in expected[-2:]:  # and one alone
        assert changed(name, f"--{field}", str(new)) == [(field, old, new)]


@pytest.mark.parametrize("name", [*CONFIGS, *(name for name, _ in list_configs())])
def test_every_leaf_is_an_option(folder, name):
    """All options at once, each with the value it has, change nothing: no field is out of reach of the command line."""
    _, config = load_config(name)
    args = []
    for flag, value in cli.options(config):
        if isinstance(value, bool):
            negative = flag.rpartition(".")[2].removeprefix("--").startswith("no-")
            args += [] if negative == value else [flag]
        elif isinstance(value, int | float | str):
            args += [flag, str(value)]
    assert len(args) > 100
    assert changed(name, *args) == []


@pytest.mark.parametrize(
    "args, change",
    [
        (["--no-preflight"], ("preflight", True, False)),
        (["--grpo_beta"], None),
        (["--kl-beta", "0"], ("kl_beta", 0.001, 0.0)),
        (["--kl_beta=0"], ("kl_beta", 0.001, 0.0)),
        (["--model.attention.q-rank", "8"], ("model.attention.q_rank", None, 8)),
        (["--model.segments.1.count", "5"], ("model.segments.1.count", 2, 5)),
        (["--sources.0.rewards.format", "0.5"], ("sources.0.rewards.format", 1.0, 0.5)),
        (["--sources.1.rewards.my-rewards.short:f", "2"], ("sources.1.rewards.my_rewards.short:f", 0.5, 2.0)),
        (["--sources.0.options.digits", "3"], ("sources.0.options.digits", 2, 3)),
        (["--sources.0.options.no-carry"], ("sources.0.options.carry", True, False)),
        (["--eval.sampling.temperature", "1"], ("eval.sampling.temperature", 0.0, 1.0)),
        (["--sampling.stop", "</answer>", "\n\n"], ("sampling.stop", [], ["</answer>", "\n\n"])),
        (["--length-schedule", "0", "32"], ("length_schedule", [[0, 64], [10, 128]], [[0, 32]])),
    ],
)
def test_options_reach_every_kind_of_field(folder, args, change):
    if change is None:
        with pytest.raises(ConfigError, match="no option --grpo-beta"):
            changed("zero", *args)
    else:
        assert changed("zero", *args) == [change]


def test_options_of_a_pipeline_name_the_stage(folder):
    assert changed("two", "--grpo.no-preflight") == [("grpo.preflight", True, False)]
    assert changed("two", "--seed", "3") == [("seed", None, 3)]


def test_the_commands_own_options_are_kept_apart(folder):
    name, config, command = cli.parse_train(["configs/zero.py", "--run-dir", "runs/a", "--steps", "3", "--dry-run"])
    assert (name, command.run_dir, command.dry_run, config.steps) == ("zero", "runs/a", True, 3)
    _, _, command = cli.parse_train(["configs/two.py", "--from", "grpo", "--until=grpo"])
    assert (command.from_, command.until) == ("grpo", "grpo")


ONE_LINE = {
    "train": "name a config first",
    "train --steps 3": "name a config first",
    "train zeroo": "no config 'zeroo'; did you mean zero?",
    "train zero --optimiser.lr 1": "no option --optimiser.lr; did you mean --optimizer.lr",
    "train zero --lr=1": "no option --lr; did you mean --optimizer.lr or --critic.optimizer.lr?",
    "train zero --dryrun": "no option --dryrun; did you mean --dry-run",
    "train two --form grpo": "did you mean --from",
    "train zero --model None": "no option --model; did you mean --model.vocab-size",
    "train zero --model.d-modle 3": "did you mean --model.d-model",
    "train zero --log.wandb.project x": "--log.wandb is None; give it a value in the config's file",
    "train zero --sources.1.options.digits 3": "--sources.1.options is empty; give it a value in the config's file",
    "train zero --eval.sources x": "--eval.sources is empty; give it a value in the config's file",
    "train two --grpo.no-preflght": "did you mean --grpo.no-preflight",
    "train zero extra": "unexpected argument 'extra'",
    "train zero --steps": "Missing value for argument",
    "train zero --steps many": "--steps: 'many' is not a whole number",
    "train zero --optimizer.lr low": "--optimizer.lr: 'low' is not a number",
    "train zero --normalize mean": "invalid choice 'mean' for argument '--normalize'",
    "train zero --steps 0": "steps is 0; a run needs at least 1",
    "train zero --optimizer.lr -1": "optimizer: optimizer.lr, weight_decay",
    "train zero --model.attention.rope-dim 15": "model: rotary channels come in pairs, but model.attention has 15",
    "train two --grpo.group 1": "grpo: group is 1; an advantage compares at least 2 answers",
    "trian zero": "no command 'trian'; did you mean train?",
    "xyz": "it is one of train, plan, generate, chat, score, eval, ",
    "generate --model m": "give either --prompt TEXT or --prompts FILE.jsonl",
    "generate --model m --prompt a --prompts b": "give either --prompt TEXT or --prompts FILE.jsonl",
    "generate --model m --prompt a --temperature -1": "temperature is -1.0; it must be >= 0",
    "chat --model m --context 512": "--context 512 leaves no room before answers of up to --max-new-tokens 512",
    "score --model m --tokens t": "give --out FILE.npz to write the log-probs, --against hf to compare them, or both",
    "generate --prompt a": "Missing from r1jax generate: --model STR",
    "generate --model m --promt a": "give either --prompt",
    "eval --model m --tasks": "--tasks is empty",
    "eval --model m --tasks a --samples 0": "--samples is 0; it must be at least 1",
    "score --model m --tokens t --out o --temperature 0": "--temperature is 0.0",
    "samples": "Missing from r1jax samples: RUN",
    "samples r --last -1": "--last is -1",
    "configs extra": "unexpected argument 'extra'",
}


@pytest.mark.parametrize("line", ONE_LINE)
def test_a_mistake_is_one_line_and_exit_code_2(folder, capfd, line):
    assert cli.main(line.split()) == 2
    out, err = capfd.readouterr()
    assert ONE_LINE[line] in err
    assert err.startswith("r1jax: error: ") and err.count("\n") == 1 and not out
    assert not set(err) & set("│╭─")


@pytest.mark.parametrize(
    "raised, code, line",
    [
        (ConfigError("no"), 2, "r1jax: error: no\n"),
        (ValueError("two\nlines"), 2, "r1jax: error: two lines\n"),
        (PermissionError(13, "Permission denied", "runs"), 2, "r1jax: error: [Errno 13] Permission denied: 'runs'\n"),
        (GuardStop("no signal"), 3, "r1jax: stopped: no signal\n"),
        (KeyboardInterrupt(), 130, "r1jax: interrupted\n"),
    ],
)
def test_what_a_command_raises_becomes_an_exit_code(folder, capsys, monkeypatch, raised, code, line):
    def command(args):
        raise raised

    monkeypatch.setitem(cli.COMMANDS, "doctor", (commands.Doctor, command))
    assert cli.main(["doctor"]) == code
    assert capsys.readouterr().err == line


def test_a_programming_error_keeps_its_traceback(folder, monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "doctor", (commands.Doctor, lambda args: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])


def test_debug_shows_the_traceback_before_the_line(folder, capsys, monkeypatch):
    monkeypatch.setenv("R1JAX_DEBUG", "1")
    assert cli.main(["train", "zero", "--steps", "0"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and err.endswith("r1jax: error: steps is 0; a run needs at least 1\n")


def test_an_interrupted_run_says_how_to_go_on(folder, capsys, monkeypatch):
    run = Path("runs/zero 1")

    def command(args):
        raise KeyboardInterrupt(run)

    monkeypatch.setitem(cli.COMMANDS, "train", (commands.Train, command))
    assert cli.main(["train", "zero", "--steps", "3"]) == 130
    how = "r1jax train zero --steps 3 --run-dir 'runs/zero 1'\n"
    assert capsys.readouterr().err.endswith(f"nothing was saved yet, so this begins again: {how}")
    rundir.create("zero", config.to_json(config.GRPO(model=config.Model())), run).close()
    for step in (5, 10):
        (run / "checkpoints" / str(step)).mkdir(parents=True)
    assert cli.main(["train", "zero", "--steps", "3"]) == 130
    assert capsys.readouterr().err.endswith(f"this goes on from step 10: {how}")
    assert cli.main(["train", "zero", "--run-dir=mine"]) == 130
    assert capsys.readouterr().err.endswith("step 10: r1jax train zero --run-dir=mine\n")


def test_commands_hand_over_what_was_asked(folder):
    args = ["--model", "m", "--tasks", "arithmetic", "reasoning_gym:chain_sum", "--samples", "8", "--temperature", "0"]
    asked = cli.parse(commands.Evaluate, args, "r1jax eval")
    assert asked.tasks == ("arithmetic", "reasoning_gym:chain_sum")
    assert (asked.samples, asked.sampling.temperature, asked.sampling.top_p) == (8, 0.0, 0.95)
    asked = cli.parse(commands.Generate, ["--model", "m", "--prompt", "-1 + 2?", "--stop", "</answer>"], "r1jax generate")
    assert (asked.prompt, asked.sampling.stop) == ("-1 + 2?", ("</answer>",))
    asked = cli.parse(observe.Samples, ["runs/a", "--where", "accuracy=0", "--follow"], "r1jax samples")
    assert (asked.run, asked.where, asked.follow, asked.last) == ("runs/a", ("accuracy=0",), True, 10)
    asked = cli.parse(observe.Report, ["runs/a", "runs/b", "--follow", "--no-figures"], "r1jax report")
    assert (asked.runs, asked.follow, asked.figures) == (("runs/a", "runs/b"), True, False)
    with pytest.raises(ConfigError, match="--follow reads files of this machine, and gs://b/run is in a bucket"):
        observe.Report(("runs/a", "gs://b/run"), follow=True)
    asked = cli.parse(commands.Train, ["zero", "--profile", "5:8"], "r1jax train")
    assert asked.profiled == (5, 8) and commands.Train("zero", profile="7").profiled == (7, 7)


@pytest.mark.parametrize("wrong", ["0", "8:5", "5:", "-1", "five", "5:8:9"])
def test_steps_to_profile_are_checked(wrong):
    with pytest.raises(ConfigError, match="--profile is .*; give a step from 1 on, or FIRST:LAST, as in 5:8"):
        commands.Train("zero", profile=wrong)


def test_configs_lists_name_and_docstring(folder, capsys):
    assert cli.main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{'zero':<20} GRPO on a mixture of experts." in lines and f"{'two':<20} SFT, then GRPO." in lines


def test_a_coordinator_without_its_numbers_is_refused(folder, capsys, monkeypatch):
    monkeypatch.setenv("R1JAX_COORDINATOR", "localhost:1234")
    monkeypatch.setenv("R1JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("R1JAX_PROCESS_ID", "first")
    assert cli.main(["train", "zero"]) == 2
    assert "R1JAX_PROCESS_ID must be a number; it is 'first'" in capsys.readouterr().err


HEAVY = ("jax", "jaxlib", "flax", "optax", "orbax", "grain", "torch", "transformers", "tokenizers", "matplotlib")


@pytest.mark.parametrize("line", ["--help", "train --help", "train zero --help", "train two --help", "eval --help", "configs"])
def test_help_is_quick_and_loads_no_jax(folder, line):
    program = f"""
import sys
from r1jax.cli import main
try:
    main({line.split()})
finally:
    print(*[m for m in {HEAVY} if m in sys.modules], file=sys.stderr)
"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=here_too())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and len(done.stdout) > 50
    assert done.stderr.strip() == ""
    # CPU time, so that a busy machine does not decide
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_help_shows_every_field_with_its_value(folder):
    done = subprocess.run(
        [sys.executable, "-m", "r1jax", "train", "zero", "--help"], capture_output=True, text=True, env=here_too()
    )
    assert done.returncode == 0
    _, config = load_config("zero")
    flags = {flag for flag, _ in cli.options(config)} | {"--run-dir", "--dry-run"}
    # Flags change values and cannot add parts.
    empty = {"--eval.sources", "--preference", "--sources.1.options", "--text.template-options"}
    assert {flag for flag in flags if flag not in done.stdout} == empty
    assert "(default: 3e-06)" in done.stdout


def test_help_fills_its_lines(folder):
    """Where a paragraph of a docstring goes on in a new line, help does not."""
    asked = here_too() | {"COLUMNS": "80"}
    lines = []
    for line in ("train zero --help", "score --help", "train --help"):
        done = subprocess.run([sys.executable, "-m", "r1jax", *line.split()], capture_output=True, text=True, env=asked)
        lines += [line.strip("│ ") for line in done.stdout.splitlines()]
    assert "directory or Hub id, org/name or org/name@revision; a" in lines
    assert "GGUF file; any of these on gs://; or wheel:PACKAGE, the" in lines
    assert "usage: r1jax train [-h] [OPTIONS] CONFIG" in lines


def test_a_reader_that_leaves_is_no_error(folder):
    command = f"{sys.executable} -m r1jax train zero --help | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=here_too())
    assert done.stdout.startswith("usage: r1jax train zero") and done.stderr == ""


def here_too():
    """The environment of a child that finds this r1jax, wherever it was started."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(cli.__file__)))
    return os.environ | {"PYTHONPATH": root, "COLUMNS": "100"}


def test_the_working_directory_can_be_imported_from(folder, capsys):
    (folder / "my_settings.py").write_text("STEPS = 77\n")
    (folder / "configs/imports.py").write_text(
        "import my_settings\nfrom r1jax.config import SFT\ndef config():\n    return SFT(init='x', steps=my_settings.STEPS)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", "from r1jax.cli import main; main(['train', 'imports', '--help'])"],
        capture_output=True,
        text=True,
        env=here_too(),
    )
    assert "(default: 77)" in done.stdout, done.stderr


def test_parsed_arguments_are_the_dataclasses_of_the_contract():
    for arguments, _ in cli.COMMANDS.values():
        assert dataclasses.is_dataclass(arguments) and arguments.__doc__.splitlines()[0].endswith(".")
