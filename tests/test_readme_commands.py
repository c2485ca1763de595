"""Every command of every README: run here on the smallest models, run by another test, or said why not. All that r1jax is
asked is parsed.

A command is a line of an indented code block or of one for a shell, or a span in backticks that is a program with arguments;
a span may leave ``r1jax`` or ``r1jax bench`` out. What is in [brackets] is optional.
"""

from __future__ import annotations

import dataclasses
import glob
import importlib.util
import io
import json
import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from readme_commands import COMMANDS, Here, There
from test_launch import PYTHON, machine, shim  # noqa: F401 (machine is a fixture)
from test_launch_clusters import SLICE, cluster, run  # noqa: F401 (cluster is a fixture)
from test_readme import example

from r1jax import cli
from r1jax.bench import fastest, limits
from r1jax.config.loading import load_config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("[a-z]*/**/README.md"))]
PROGRAMS = ("bash", "docker", "gcloud", "git", "hf", "kubectl", "pip", "python", "r1jax", "sbatch", "tensorboard", "xprof")
NO_COMMANDS = ("{", "prompts -> rollout", "r1jax: error: ", "others were ended;")
"""How lines of indented blocks begin that show something else: rows, the data's way, what a lost process says."""


# -- What the READMEs say


def commands_of(text: str) -> list[str]:
    """Each on one line, without its comment."""
    found = []

    def take(match: re.Match) -> str:
        if match["indented"] or match["language"] in ("", "bash", "sh", "console"):
            found.extend(lines_of(match["indented"] or match["fenced"]))
        return "\n"

    blocks = r"^```(?P<language>\w*)[^\n]*\n(?P<fenced>.*?)^```$|(?<=\n\n)(?P<indented>(?: {4}[^\n]*\n)+)"
    prose = re.sub(blocks, take, text, flags=re.M | re.S)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    return found + [span for span in spans if is_command(span)]


def lines_of(block: str) -> list[str]:
    lines = [line.strip().removeprefix("$ ") for line in re.sub(r"\\\n", "", block).splitlines()]
    lines = [re.sub(r"(^|\s+)#\s.*", "", line) for line in lines if not line.startswith(NO_COMMANDS)]
    parts = [part for line in lines for part in re.split(r"\s*(?:&&|[;|])\s+", line)]
    return [" ".join(part.split()) for part in parts if part]


def is_command(span: str) -> bool:
    """Not the name of a command alone, which cannot be called so (``r1jax plan``)."""
    words = program(span.split())
    if " " not in span or not words or words[0] not in PROGRAMS:
        return False
    table = {"data": cli.DATA, "bench": cli.BENCH}.get(words[1], cli.COMMANDS)
    if words[0] != "r1jax" or words[-1] not in table or len(words) > 3:
        return True
    return all(has_default(field) for field in dataclasses.fields(table[words[-1]][0]))


def has_default(field: dataclasses.Field) -> bool:
    return not field.default is field.default_factory is dataclasses.MISSING


def program(words: list[str]) -> list[str]:
    """From the program on, with what was left out before it."""
    while words and (re.match(r"[A-Z0-9_]+=", words[0]) or words[0] == "srun"):
        words = words[1:]
    words = words[3:] if words[:2] == ["chrt", "-r"] else words
    flags = any(word.startswith("--") for word in words)
    words = ["bench", *words] if flags and words[0] in cli.BENCH else words
    return ["r1jax", *words] if words and (flags and words[0] in cli.COMMANDS or words[0] == "bench") else words


FOUND = {str(page.relative_to(ROOT)): commands_of(page.read_text()) for page in PAGES}
ALL = sorted({command for commands in FOUND.values() for command in commands})


@pytest.mark.parametrize("page", FOUND)
def test_every_command_is_in_the_table(page):
    assert [command for command in FOUND[page] if command not in COMMANDS] == []


def test_every_command_of_the_table_is_in_a_readme():
    assert sorted(COMMANDS.keys() - set(ALL)) == []


def test_how_commands_are_found():
    text = (
        "Run `r1jax plan` or `r1jax\nruns`, `A=1 bash x.sh` and `bench rollout --slots 4`; `grpo --group 2`, `top_k 5`.\n\n"
        "    $ r1jax samples RUN \\\n        --last 5    # why\n    pip install a; xprof --logdir 'b c'\n    {\"a\": 1}\n\n"
        "```python\nr1jax = 1\n```\n\n```bash\nmake it && git pull\n```\n"
    )
    assert commands_of(text) == [
        "r1jax samples RUN --last 5", "pip install a", "xprof --logdir 'b c'", "make it", "git pull",
        "r1jax runs", "A=1 bash x.sh", "bench rollout --slots 4", "grpo --group 2",
    ]  # fmt: skip


# -- What they ask for

STAND_FOR = {"--a.b value": "--seed 1", "--field value ...": "--seed 1", "pytest arguments": "-x", "...": ""}
NUMBERS = {"N": "1", "I": "0"}


def words_of(command: str, optional: bool = False) -> list[str]:
    """As a shell takes them; what is in brackets with them or without."""

    def part(match: re.Match) -> str:
        return STAND_FOR.get(match[1], match[1]) if optional else ""

    line = re.sub(r"(?<= )\[([^\]]*)\]", part, command).replace(" ... ", " ").removesuffix(" ...")
    return [NUMBERS.get(word, word) for word in shlex.split(line)]


def asked(command: str, optional: bool = False) -> tuple[str, ...]:
    """The arguments of r1jax, if that is what the command comes to."""
    words = program(words_of(command, optional))
    if words[0] == "r1jax":
        return (*words[1:], *shlex.split(COMMANDS[command].more if command in COMMANDS else ""))
    scripts = [i for i, word in enumerate(words) if word.startswith("launch/") and word != "launch/test.sh"]
    if words[0] not in ("bash", "sbatch") or not scripts:
        return ()
    script, *rest = words[scripts[0] :]
    if rest[:1] in (["--dry-run"], ["--install"]):
        rest = rest[1:]
    if script in ("launch/tpu_vm.sh", "launch/gke.sh"):
        rest = rest[1:]  # the name of the slice or job
    return ("train", *(rest if rest and not rest[0].startswith("-") else ["quickstart", *rest]))


def furnish() -> None:
    """What commands name, in the working directory."""
    for name in ("my_reward.py", "my_config.py"):
        Path(name).write_text(example(name))
    Path("configs").mkdir()
    for name in ("CONFIG", "NAME", "compare_cispo"):
        Path(f"configs/{name}.py").write_text(
            '"""The smallest."""\nimport tiny\ndef config():\n    return tiny.grpo(init="RUN", model=None)\n'
        )


class Read(Exception):
    """Raised once the arguments are read, before anything is done."""


RUN_HERE = [command for command, where in COMMANDS.items() if isinstance(where, Here)]
IN_PROCESS = [command for command in RUN_HERE if program(words_of(command))[0] == "r1jax"]
ONLY_READ = {asked(command, optional) for command in ALL for optional in (False, True)} - set(map(asked, IN_PROCESS)) - {()}


@pytest.mark.parametrize("words", sorted(ONLY_READ), ids=shlex.join)
def test_its_arguments_are_read(words, tmp_path, monkeypatch):
    """Of commands that are not run here, and with all that is optional."""
    read = cli.parse

    def parse(*args, **settings):
        raise Read(read(*args, **settings))

    monkeypatch.chdir(tmp_path)
    furnish()
    monkeypatch.setattr(cli, "parse", parse)
    with pytest.raises((Read, SystemExit)) as ended:
        cli.run(words)
    assert ended.type is Read or ended.value.code == 0


# -- What they do

PIPELINE = """
from dataclasses import dataclass, field, replace

import tiny
from r1jax.config import GRPO, SFT, Pipeline

MATH = replace(tiny.source(), name="math", rewards={"accuracy": 1.0})


@dataclass(frozen=True)
class Recipe(Pipeline):
    dev1: SFT = field(default_factory=lambda: tiny.sft(model=tiny.DENSE, steps=1))
    rl1: GRPO = field(
        default_factory=lambda: tiny.grpo(
            init="dev1", model=None, steps=1, minibatches=1, clip_high=10.0, kl_beta=0.0, sources=(MATH,)
        )
    )


def config():
    return Recipe()
"""
ROWS = [{"prompt": f"{i} + 1 =", "completion": f"<answer>{i}</answer>", "answer": str(i + i % 2)} for i in range(30)]
FILES = {
    "rows.jsonl": ROWS,
    "unique.jsonl": ROWS,
    "clean.jsonl": ROWS,
    "train.jsonl": ROWS,
    "my_test.jsonl": ROWS[:3],
    "mine.jsonl": ROWS[:3],
    "asked.jsonl": [{"prompt": "how?", "category": "weapons", "language": "en"}],
    "copy/test.jsonl": [{"question": "1+1?", "answer": "1+1=2\n#### 2"}],
    "openai/gsm8k/main/test.jsonl": [{"question": "1+1?", "answer": "1+1=2\n#### 2"}],
    "HuggingFaceH4/MATH-500/test.jsonl": [{"problem": "1+1?", "solution": "\\boxed{2}", "answer": "2"}],
    "HuggingFaceH4/aime_2024/train.jsonl": [{"Problem": "1+1?", "Solution": "2", "Answer": "002"}],
}
MODELS = ("M", "MODEL", "NAME", "OTHER", "try", "org/name", "runs/sft", "runs/rl", "runs/compare_grpo-0", "runs/compare_grpo-1")
RELEASED = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """A folder with a run of two stages, which also stands for every other model, and all files that commands name."""
    path = tmp_path_factory.mktemp("readme") / "stock"
    path.mkdir()
    shipped = load_config("r1_pipeline_tiny")[1].stages()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        furnish()
        Path("configs/r1_pipeline_tiny.py").write_text(PIPELINE)
        assert cli.main(["train", "r1_pipeline_tiny", "--run-dir", "RUN"]) == 0
        for name, stage in load_config("r1_pipeline_tiny")[1].stages().items():
            assert type(stage) is type(shipped[name])
        Path("RUN/STAGE").symlink_to("rl1")
        for name in (*MODELS, RELEASED):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).symlink_to(path / "RUN")
        for name, rows in FILES.items():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        Path("mine.py").write_text("def safe(prompt, text):\n    return 0.9\n")
        np.save("in.npy", np.array([[1, 2, 3], [4, 5, -1]], np.int32))
    return path


@pytest.fixture
def here(stock, tmp_path, monkeypatch):
    shutil.copytree(stock, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    monkeypatch.setattr(fastest, "SECONDS", 0.0)  # how fast this machine is does not matter here
    monkeypatch.setattr(limits, "COPIED", 1 << 16)
    yield


@pytest.mark.parametrize("command", IN_PROCESS, ids=str)
def test_it_does_what_it_says(command, here, capsys):
    pytest.importorskip(COMMANDS[command].needs)
    args = [found for word in asked(command) for found in (sorted(glob.glob(word)) if "*" in word else [word])]
    try:
        code = cli.main(args)
    except SystemExit as stop:  # --help
        code = stop.code
    assert code == 0, capsys.readouterr().err
    if "--out" in args:
        assert Path(args[args.index("--out") + 1]).exists()


MEANT = SLICE | {"IMAGE": "r1jax:cuda", "ACCELERATOR": "nvidia-h100-80gb", "HOSTS": "2", "CHIPS": "8"}


@pytest.mark.parametrize("command", [c for c in RUN_HERE if "launch/" in c])
def test_the_script_prints_what_it_would_do(command, cluster):  # noqa: F811
    shim(cluster, "python3", PYTHON)
    words = [{"CONFIG": "quickstart", "NAME": "name"}.get(word, word) for word in words_of(command)]
    at = next(i for i, word in enumerate(words) if word.startswith("launch/"))
    given = dict(word.split("=", 1) for word in words[:at] if re.match("[A-Z]", word))
    given = {name: MEANT[name] if value == "..." else value for name, value in given.items()}
    done, calls = run(cluster, words[at].removeprefix("launch/"), *words[at + 1 :], DRY_RUN="1", **given)
    assert (done.returncode, calls) == (0, []), done.stderr
    expected = words[at + 1 :] if "launch/test.sh" in words else asked(shlex.join(words))[1:]
    expected = {"parity": ["-m parity"]}.get(words[-1], expected) if "--install" not in words else ["pip install"]
    assert expected or "-m pytest" in done.stdout
    assert [word for word in expected if word not in done.stdout] == []


def test_all_that_is_run_here_is_run_by_one_of_these():
    assert [c for c in RUN_HERE if c not in IN_PROCESS and "launch/" not in c] == []


@pytest.mark.parametrize("test", sorted({where.test for where in COMMANDS.values() if isinstance(where, There)}))
def test_the_other_test_is_there(test):
    file, name = test.split("::")
    assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text()


@pytest.mark.parametrize("command", [command for command in ALL if program(command.split())[0] != "r1jax"])
def test_what_it_names_is_there(command):
    """Files of the checkout, modules, and extras; also of commands that are not run."""
    words = words_of(command)
    assert [word for word in words if re.match("(launch|tests)/", word) and not (ROOT / word).exists()] == []
    assert [word for word in words if word.startswith("r1jax.") and not importlib.util.find_spec(word)] == []
    if "pip" in words:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert [extra for word in words for extra in re.findall(r"(?:r1jax|\.)\[(.*)\]", word) if extra not in extras] == []
