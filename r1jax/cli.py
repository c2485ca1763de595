"""The command ``r1jax``: parses arguments, starts jax.distributed, and turns errors into one line and an exit code.

A command is a function of another room, imported when it is called, so that ``--help`` loads no jax. Exit codes: 0 did what
was asked, 1 a process of several was lost (or a mistake of ours, with a traceback), 2 the user's mistake, 3 stopped by a
guard, 75 pre-empted and saved, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import itertools
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

import r1jax
from r1jax import place, rundir, supervise
from r1jax.arguments import REGISTRY, paragraphs
from r1jax.config import bench as bench_commands
from r1jax.config import commands, data_commands
from r1jax.config import observe as observe_commands
from r1jax.config.base import ConfigError, GuardStop, ProcessLost
from r1jax.config.loading import list_configs, load_config
from r1jax.config.plan import Plan
from r1jax.config.stages import AnyStage, Pipeline
from r1jax.place import Place

T = TypeVar("T")
LOST, PREEMPTED, INTERRUPTED = 1, 75, 130


# -- Commands


def train(args: Sequence[str]) -> int:
    name, config, command = parse_train(args)
    if not command.dry_run and not supervise.is_worker():
        places = place.find(command.processes, command.coordinator, command.process_count, command.process_id)
        if places:
            return train_together(args, name, command, places)
    start_distributed()
    from r1jax.stages.pipeline import train

    return train(
        config, name=name, run_dir=command.run_dir, dry_run=command.dry_run, first=command.from_, last=command.until,
        profile=command.profiled,
    )  # fmt: skip


def train_together(args: Sequence[str], name: str, command: commands.Train, places: list[Place]) -> int:
    """Every process under a parent, which this one is."""
    run_dir, words = command.run_dir, ["train", *args]
    if run_dir is None:
        if any(place.count != len(places) for place in places):
            raise ConfigError("processes that are started one by one must agree on the run directory; name it with --run-dir")
        run_dir = str(rundir.unused(name))
        words += ["--run-dir", run_dir]

    def goes_on() -> str:
        saved = rundir.last_saved(supervise.logs_of(run_dir).parent)
        return f"; --run-dir {run_dir} goes on from {saved}" if saved else ""

    try:
        return supervise.supervise([sys.executable, "-m", "r1jax", *words], places, supervise.logs_of(run_dir), goes_on)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(run_dir) from None


def plan(args: Sequence[str]) -> int:
    name, config, command = parse_train(args, Plan, "r1jax plan")
    if command.topology != "here":  # nothing runs, so jax need not look for devices, and complain of those that it misses
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from r1jax.stages.plan import plan

    return plan(config, name, command)


def generate(args: Sequence[str]) -> int:
    command = parse(commands.Generate, args, "r1jax generate")
    start_distributed()
    from r1jax.eval.generate import generate

    return generate(command)


def chat(args: Sequence[str]) -> int:
    command = parse(commands.Chat, args, "r1jax chat")
    start_distributed()
    from r1jax.eval.chat import chat

    return chat(command)


def score(args: Sequence[str]) -> int:
    command = parse(commands.Score, args, "r1jax score")
    start_distributed()
    from r1jax.eval.score import score

    return score(command)


def evaluate(args: Sequence[str]) -> int:
    command = parse(commands.Evaluate, args, "r1jax eval")
    start_distributed()
    from r1jax.eval.evaluate import evaluate

    return evaluate(command)


def reward(args: Sequence[str]) -> int:
    command = parse(commands.Reward, args, "r1jax reward")
    from r1jax.eval.reward import reward

    return reward(command)


def export(args: Sequence[str]) -> int:
    command = parse(commands.Export, args, "r1jax export")
    start_distributed()
    from r1jax.stages.export import export

    return export(command)


def report(args: Sequence[str]) -> int:
    command = parse(observe_commands.Report, args, "r1jax report")
    from r1jax.observe.report import report

    return report(command)


def runs(args: Sequence[str]) -> int:
    command = parse(observe_commands.Runs, args, "r1jax runs")
    from r1jax.observe.runs import show_runs

    return show_runs(command.folder, as_json=command.json)


def samples(args: Sequence[str]) -> int:
    command = parse(observe_commands.Samples, args, "r1jax samples")
    from r1jax.observe.samples import show_samples

    return show_samples(command)


def compare(args: Sequence[str]) -> int:
    command = parse(commands.Compare, args, "r1jax compare")
    from r1jax.observe.compare import compare

    return compare(command.runs, metric=command.metric, out=command.out)


def data(args: Sequence[str]) -> int:
    return choose(args, DATA, "r1jax data", data_commands.Data.__doc__)


def data_show(args: Sequence[str]) -> int:
    command = parse(data_commands.DataShow, args, "r1jax data show")
    from r1jax.data.show import show

    return show(command)


def data_build(args: Sequence[str]) -> int:
    command = parse(data_commands.DataBuild, args, "r1jax data build")
    from r1jax.data.build import build

    return build(command)


def data_pass_rate(args: Sequence[str]) -> int:
    command = parse(data_commands.DataPassRate, args, "r1jax data pass-rate")
    start_distributed()
    from r1jax.eval.pass_rate import pass_rate

    return pass_rate(command)


def data_dedupe(args: Sequence[str]) -> int:
    command = parse(data_commands.DataDedupe, args, "r1jax data dedupe")
    from r1jax.data.dedupe import dedupe

    return dedupe(command)


def data_decontaminate(args: Sequence[str]) -> int:
    command = parse(data_commands.DataDecontaminate, args, "r1jax data decontaminate")
    from r1jax.data.decontaminate import decontaminate

    return decontaminate(command)


def data_provenance(args: Sequence[str]) -> int:
    command = parse(data_commands.DataProvenance, args, "r1jax data provenance")
    from r1jax.data.provenance import provenance

    return provenance(command)


def data_pairs(args: Sequence[str]) -> int:
    command = parse(data_commands.DataPairs, args, "r1jax data pairs")
    from r1jax.data.pairs import pairs

    return pairs(command)


def bench(args: Sequence[str]) -> int:
    return choose(args, BENCH, "r1jax bench", bench_commands.Bench.__doc__)


def bench_rollout(args: Sequence[str]) -> int:
    command = parse(bench_commands.BenchRollout, args, "r1jax bench rollout")
    from r1jax.bench.rollout import rollout

    return rollout(command)


def bench_update(args: Sequence[str]) -> int:
    command = parse(bench_commands.BenchUpdate, args, "r1jax bench update")
    from r1jax.bench.update import update

    return update(command)


def bench_grpo(args: Sequence[str]) -> int:
    command = parse(bench_commands.BenchGrpo, args, "r1jax bench grpo")
    from r1jax.stages.bench import grpo

    return grpo(command)


def configs(args: Sequence[str]) -> int:
    parse(commands.Configs, args, "r1jax configs")
    for name, line in list_configs():
        print(f"{name:<20} {line}")
    return 0


def doctor(args: Sequence[str]) -> int:
    parse(commands.Doctor, args, "r1jax doctor")
    from r1jax.doctor import doctor

    return doctor()


Commands = dict[str, tuple[type, Callable[[Sequence[str]], int]]]
"""Name -> the arguments and the function."""
DATA: Commands = {
    "show": (data_commands.DataShow, data_show),
    "build": (data_commands.DataBuild, data_build),
    "pass-rate": (data_commands.DataPassRate, data_pass_rate),
    "dedupe": (data_commands.DataDedupe, data_dedupe),
    "decontaminate": (data_commands.DataDecontaminate, data_decontaminate),
    "provenance": (data_commands.DataProvenance, data_provenance),
    "pairs": (data_commands.DataPairs, data_pairs),
}
BENCH: Commands = {
    "rollout": (bench_commands.BenchRollout, bench_rollout),
    "update": (bench_commands.BenchUpdate, bench_update),
    "grpo": (bench_commands.BenchGrpo, bench_grpo),
}
COMMANDS: Commands = {
    "train": (commands.Train, train),
    "plan": (Plan, plan),
    "generate": (commands.Generate, generate),
    "chat": (commands.Chat, chat),
    "score": (commands.Score, score),
    "eval": (commands.Evaluate, evaluate),
    "reward": (commands.Reward, reward),
    "export": (commands.Export, export),
    "report": (observe_commands.Report, report),
    "samples": (observe_commands.Samples, samples),
    "runs": (observe_commands.Runs, runs),
    "compare": (commands.Compare, compare),
    "data": (data_commands.Data, data),
    "bench": (bench_commands.Bench, bench),
    "configs": (commands.Configs, configs),
    "doctor": (commands.Doctor, doctor),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. ``--help`` leaves by SystemExit(0)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does: configs name rewards and sources by import path
    try:
        return run(argv)
    except KeyboardInterrupt as interrupt:
        if not supervise.is_worker():  # the parent says it once for all
            print(f"r1jax: interrupted{how_to_resume(argv, interrupt)}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, `head` say, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return LOST if is_distributed() else 0  # the others cannot go on
    except GuardStop as stop:
        return fail("stopped", stop, 3)
    except ProcessLost as lost:
        return fail("error", lost, LOST)
    except (ValueError, OSError) as error:
        return fail("error", error, 2)


def command() -> None:
    """What the script ``r1jax`` calls."""
    if supervise.is_worker():
        supervise.follow_parent()
    try:
        code = main()
    except Exception:
        if not is_distributed():
            raise
        traceback.print_exc()
        code = LOST
    # Taking the interpreter down while a thread still compiles crashes, and jax would wait for processes that may not come.
    if code == INTERRUPTED or code not in (0, PREEMPTED) and is_distributed():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(argv: Sequence[str]) -> int:
    if argv[:1] == ["--version"]:
        print(f"r1jax {r1jax.__version__}")
        return 0
    return choose(argv, COMMANDS, "r1jax", r1jax.__doc__, "`r1jax train CONFIG --help` lists every setting of that config.")


def choose(argv: Sequence[str], table: Commands, prog: str, describe: str, hint: str = "") -> int:
    """Runs the command of ``table`` that the first word names; without one, or asked for help, prints what there is."""
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, table))
        lines = [f"  {name:<{width}} {arguments.__doc__.splitlines()[0]}" for name, (arguments, _) in table.items()]
        top = [describe.splitlines()[0], "", f"usage: {prog} COMMAND [--help] ...", "", *lines]
        print("\n".join([*top, "", hint] if hint else top))
        return 0
    if argv[0] not in table:
        near = difflib.get_close_matches(argv[0], table, n=1)
        instead = f"did you mean {near[0]}?" if near else f"it is one of {', '.join(table)}"
        raise ConfigError(f"no command {f'{prog} {argv[0]}'.removeprefix('r1jax ')!r}; {instead}")
    return table[argv[0]][1](argv[1:])


# -- Errors


def fail(kind: str, error: Exception, code: int) -> int:
    if os.environ.get("R1JAX_DEBUG"):
        traceback.print_exception(error)
    message = " ".join(str(error).split("\n")) or type(error).__name__
    print(f"r1jax: {kind}: {message}", file=sys.stderr)
    return code


def how_to_resume(argv: Sequence[str], interrupt: KeyboardInterrupt) -> str:
    """The command that goes on with the run. Training names its directory as the argument of KeyboardInterrupt."""
    if not interrupt.args:
        return ""
    words, path = list(argv), Path(interrupt.args[0])
    if not any(word.replace("_", "-").startswith("--run-dir") for word in words):
        words += ["--run-dir", str(path)]
    saved = rundir.last_saved(path)
    goes_on = f"this goes on from {saved}" if saved else "nothing was saved yet, so this begins again"
    return f"; {goes_on}: r1jax {shlex.join(words)}"


# -- Arguments


def parse_train(
    args: Sequence[str], arguments: type[T] = commands.Train, prog: str = "r1jax train"
) -> tuple[str, AnyStage | Pipeline, T]:
    """The config's name, its value with the flags' changes, and the command's own arguments."""
    if not args or args[0].startswith("-"):
        if {"-h", "--help"} & set(args):
            parse(arguments, ["--help"], prog)
        raise ConfigError(f"name a config first, as in `{prog} CONFIG --steps 10`; `r1jax configs` lists them")
    name, config = load_config(args[0])
    settings = ("settings", Annotated[type(config), tyro.conf.arg(name="")], dataclasses.field(default=config))
    both = dataclasses.make_dataclass(arguments.__name__, [settings], bases=(arguments,), frozen=True, kw_only=True)
    parsed = parse(both, args, f"{prog} {args[0]}", f"Settings of {name}, and the values they have without an option.")
    return name, parsed.settings, parsed


def parse(arguments: type[T], args: Sequence[str], prog: str, describe: str | None = None) -> T:
    """``args`` as an instance of a dataclass.

    Raises:
      ConfigError: an unknown option, with the nearest ones that exist, or a value that does not fit.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            parsed, unknown = tyro.cli(
                tyro.conf.AvoidSubcommands[arguments],  # a union would become a subcommand otherwise
                args=list(args),
                prog=prog,
                description=describe or paragraphs(arguments.__doc__),
                registry=REGISTRY,
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        message = unboxed(box.getvalue()).removeprefix("Error parsing ").removeprefix("settings.")
        raise ConfigError(message.removeprefix(f"{arguments.__name__}: ")) from None
    if unknown:
        raise ConfigError(f"{why_unknown(unknown[0], parsed)} ({prog} --help lists all)")
    return parsed


def unboxed(box: str) -> str:
    """The first paragraph of tyro's framed message, as one line. On a terminal without Unicode a rule stands before it."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip(" │|") for line in plain.splitlines()[1:-1]]
    ruled = itertools.dropwhile(lambda line: not line.strip("─-"), lines)
    return " ".join(" ".join(itertools.takewhile(lambda line: line.strip("─-"), ruled)).split())


def why_unknown(word: str, parsed: Any) -> str:
    """What is wrong with a word that no option of ``parsed`` took."""
    if not word.startswith("--"):
        return f"unexpected argument {word!r}"
    flag = word.split("=")[0].replace("_", "-")
    known = {flag.replace("--settings.", "--"): value for flag, value in options(parsed)}
    for parent, value in known.items():
        if f"{flag}.".startswith(f"{parent}."):
            return f"no option {flag}: {parent} is {value if value is None else 'empty'}; give it a value in the config's file"
    near = [name for name in known if name.startswith(f"{flag}.") or name.rpartition(".")[2] == flag.removeprefix("--")]
    near = near or difflib.get_close_matches(flag, known, n=3, cutoff=0.75)
    return f"no option {flag}" + (f"; did you mean {' or '.join(near[:3])}?" if near else "")


def options(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """(flag, value) of every leaf of a dataclass. An empty tuple of dataclasses, an empty dict and an optional dataclass
    that is None come too, though tyro makes no option of them."""
    if dataclasses.is_dataclass(value):
        parts = [(field.name, vars(value)[field.name]) for field in dataclasses.fields(value)]
    elif isinstance(value, dict):
        parts = list(value.items())
    elif isinstance(value, tuple | list) and any(
        dataclasses.is_dataclass(item) or isinstance(item, dict | list) for item in value
    ):
        parts = list(enumerate(value))
    else:
        parts = []
    for name, part in parts:
        yield from options(part, f"{where}.{name}" if where else str(name))
    if not parts:
        stem, _, leaf = where.rstrip("_").replace("_", "-").rpartition(".")
        prefix = f"--{stem}." if stem else "--"
        yield f"{prefix}{leaf}", value
        if isinstance(value, bool):
            yield f"{prefix}no-{leaf}", value


# -- Several processes


def start_distributed() -> None:
    """Starts jax.distributed when several processes were launched (see ``place.find``); a process on its own starts nothing.

    R1JAX_JOIN_SECONDS is for how long the processes wait for each other at the start (300). R1JAX_HEARTBEAT_SECONDS is when
    one that says nothing is taken for dead (100): where its parent is lost too, this is how the others hear of it.

    Raises:
      ConfigError: a variable is missing or no number, or process 0 cannot be reached.
    """
    here = place.from_environment()
    if here is None:
        return
    supervise.tell(phase=supervise.JOIN)
    patience, heartbeat = seconds("R1JAX_JOIN_SECONDS", 300), seconds("R1JAX_HEARTBEAT_SECONDS", 100)
    here.reach(patience)
    where: dict[str, Any] = {}
    if here.coordinator != place.AUTO:
        where = {"coordinator_address": here.coordinator, "num_processes": here.count, "process_id": here.rank}
        # Ours is known, and in SLURM jax would take one GPU for every task.
        where["cluster_detection_method"] = "deactivate"
        if here.devices:
            where["local_device_ids"] = here.devices
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    try:
        jax.distributed.initialize(**where, initialization_timeout=patience, heartbeat_timeout_seconds=heartbeat)
    except ValueError as error:
        raise ConfigError(
            f"jax finds no cluster here that it knows ({error}); give --coordinator HOST:PORT, --process-count and --process-id"
        ) from error
    supervise.tell(rank=jax.process_index() if here.rank is None else here.rank, phase="prepare")


def is_distributed() -> bool:
    """Whether this is one of several processes that have joined."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def seconds(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdecimal() or not int(text):
        raise ConfigError(f"{variable} must be a number of seconds; it is {text!r}")
    return int(text)
