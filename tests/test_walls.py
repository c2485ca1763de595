"""The house keeps its floors: who may import whom, inside r1jax and of other packages, and what starts without jax."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

# Room -> what it may import of ours, from the ground floor up. A name allows everything below it; a room may import itself.
FLOOR_0 = ("config", "rewards", "hub", "mirror", "types", "place", "supervise", "lease", "lock")
FLOOR_1 = (*FLOOR_0, "params", "sharding", "lora", "processes", "durable")
FLOOR_4 = (*FLOOR_1, "nn", "losses", "advantages", "data", "models", "rollout", "train", "checkpoint", "convert")
FLOOR_5 = (*FLOOR_4, "plan", "eval", "bench", "observe", "rundir", "loading", "doctor")
ROOMS = {
    "config": (),
    "rewards": ("config",),
    "hub": (),
    "mirror": ("hub",),
    "lease": ("config", "hub", "mirror"),
    "lock": ("config", "mirror"),
    "types": (),
    "place": ("config",),
    "supervise": ("place", "mirror"),
    "params": FLOOR_0,
    "sharding": (*FLOOR_0, "params"),  # the rules lay out trees of ParamSpec
    "lora": (*FLOOR_0, "params"),
    "processes": ("config",),
    "durable": ("hub", "mirror"),
    "nn": FLOOR_1,
    "losses": ("types",),
    "advantages": ("types",),
    "data": FLOOR_0,
    "models": (*FLOOR_1, "nn"),
    "rollout": (*FLOOR_1, "nn", "models"),
    "train": (*FLOOR_1, "nn", "losses", "models"),
    "checkpoint": (*FLOOR_1, "train.state"),
    "convert": (*FLOOR_1, "data", "models"),
    "plan": tuple(room for room in FLOOR_4 if room not in ("data", "rewards")),
    # score compares with peers, slots must fit, and an evaluation says how far it is.
    "eval": (*FLOOR_4, "loading", "bench.peers", "plan", "observe.display"),
    # What is needed, what an error says of the memory, and what compiles.
    "bench": (*FLOOR_4, "loading", "plan.flops", "plan.shortage", "observe.compiling", "observe.phases"),
    "observe": (*FLOOR_0, "rundir"),  # what it looks at lies in run directories
    "rundir": (*FLOOR_0, "durable"),
    "loading": (*FLOOR_4, "rundir"),  # a run directory is one of the names of a model
    "doctor": FLOOR_0,
    "arguments": ("config",),
    "stages": FLOOR_5,
    "cli": (*FLOOR_5, "stages", "arguments"),
    "__main__": ("cli",),
}
STAGES = ("stages.grpo", "stages.sft", "stages.rejection_sampling", "stages.reward_model")
STARTERS = ("stages.pipeline", "stages.bench")  # only these import them

# Package -> the only places of ours that may import it.
THIRD_PARTY = {
    "tokamax": ("nn.kernels",),
    "orbax": ("checkpoint",),
    "etils": ("mirror", "durable", "checkpoint", "rundir"),
    "grain": ("data",),
    "optax": ("train",),
    "safetensors": ("convert",),
    "gguf": ("convert",),
    "huggingface_hub": ("hub",),
    "fsspec": ("hub",),
    "pyarrow": ("data",),
    "transformers": ("bench.peers",),
    "trl": ("bench.peers",),
    "torch": ("bench.peers",),
    "lm_eval": ("eval.harness",),
    "tyro": ("cli", "arguments"),
    "argparse": ("cli",),
    "jax.distributed": ("cli",),
}
# At import; cli imports rooms in functions.
WITHOUT_JAX = ("config", "rewards", "hub", "mirror", "place", "supervise", "arguments", "cli", "__main__")
JAX = ("jax", "jaxlib", "flax", "chex", "optax", "orbax")


class Arrow(NamedTuple):
    """``source`` imports ``target``; of ours both are dotted below r1jax, and '' is the package itself."""

    source: str
    target: str
    ours: bool
    at_import: bool
    where: str

    def __str__(self):
        return f"{self.where}: {self.source or 'r1jax'} imports {self.target}"


def below(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(place + ".") for place in places)


def imports(tree: ast.AST, package: str, at_import: bool = True):
    """(node, dotted module or attribute, whether importing the file runs it) of every import below ``tree``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((node, f"{module}.{alias.name}", at_import) for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "jax":
            yield node, f"jax.{node.attr}", False
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports(node, package, at_import and not inside)


def arrows(package: Path) -> list[Arrow]:
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        is_init = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_init else parts)
        for node, target, at_import in imports(ast.parse(path.read_text()), ".".join(parts[:-1])):
            ours = below(target, (package.name,))
            if ours:  # `from r1jax.a import b`: b is a module if there is such a file, else a name in a
                file = package.parent.joinpath(*target.split("."))
                if not (file.is_dir() or file.with_suffix(".py").is_file()):
                    target = target.rpartition(".")[0]
            short = [dotted.partition(".")[2] for dotted in (name, target)]
            where = f"{path.relative_to(package.parent)}:{node.lineno}"
            found.append(Arrow(short[0], short[1] if ours else target, ours, at_import, where))
    return found


def is_wrong(arrow: Arrow) -> bool:
    source_room, target_room = (name.partition(".")[0] for name in (arrow.source, arrow.target))
    if not arrow.ours:
        homes = [places for package, places in THIRD_PARTY.items() if below(arrow.target, (package,))]
        if any(not below(arrow.source, places) for places in homes):
            return True
        return arrow.at_import and below(arrow.target, JAX) and (not source_room or source_room in WITHOUT_JAX)
    if arrow.target == "":  # the package itself holds its version only
        return False
    if below(arrow.target, STAGES) and source_room == "stages":
        return arrow.source not in (*STARTERS, arrow.target)
    return source_room != target_room and not below(arrow.target, ROOMS.get(source_room, ()))


def test_no_arrow_points_where_the_table_does_not_allow():
    wrong = [str(arrow) for arrow in arrows(ROOT / "r1jax") if is_wrong(arrow)]
    assert not wrong, "\n".join(wrong)


def test_every_room_is_in_the_table():
    found = {path.stem for path in (ROOT / "r1jax").iterdir() if path.suffix == ".py" or any(path.rglob("*.py"))}
    assert found - {"__init__"} <= set(ROOMS)


def test_configs_import_the_config_room_only():
    for path in (ROOT / "configs").glob("*.py"):
        for node, target, _ in imports(ast.parse(path.read_text()), ""):
            allowed = below(target, ("r1jax.config",)) or target.partition(".")[0] in sys.stdlib_module_names
            assert allowed, f"configs/{path.name}:{node.lineno} imports {target}"


@pytest.mark.parametrize(
    ("file", "line", "wrong"),
    [
        ("nn/moe.py", "from r1jax.models import decoder", True),
        ("nn/moe.py", "from r1jax.nn.mlp import mlp", False),
        ("nn/moe.py", "from r1jax import rollout", True),
        ("nn/moe.py", "from .. import rollout", True),
        ("nn/moe.py", "def f():\n    import r1jax.stages", True),
        ("nn/moe.py", "from r1jax import __version__", False),
        ("losses/grpo.py", "from r1jax.config import GRPO", True),
        ("losses/grpo.py", "import optax", True),
        ("checkpoint.py", "from r1jax.train.state import State", False),
        ("checkpoint.py", "from r1jax.train import state", False),
        ("checkpoint.py", "from r1jax.train.update import update", True),
        ("checkpoint.py", "import orbax.checkpoint as ocp", False),
        ("rundir.py", "from orbax import checkpoint", True),
        ("plan/memory.py", "from r1jax.data import packing", True),
        ("stages/pipeline.py", "from r1jax.stages import grpo", False),
        ("stages/sft.py", "from r1jax.stages.grpo import train", True),
        ("stages/sft.py", "from r1jax.stages.common import Loop", False),
        ("eval/tasks.py", "from r1jax.stages import grpo", True),
        ("eval/tasks.py", "from r1jax.bench import peers", False),
        ("eval/tasks.py", "from r1jax.bench import speed", True),
        ("eval/tasks.py", "def f():\n    import transformers", True),
        ("bench/peers.py", "def f():\n    import transformers", False),
        ("rewards/worker.py", "import jax", True),
        ("cli.py", "import jax.numpy as jnp", True),
        ("cli.py", "def f():\n    import jax\n    jax.distributed.initialize()", False),
        ("sharding.py", "import jax\njax.distributed.initialize()", True),
        ("loading.py", "import tyro", True),
        ("cellar.py", "from r1jax import config", True),
    ],
)
def test_the_checker_sees(tmp_path, file, line, wrong):
    package = tmp_path / "r1jax"
    existing = ("models/decoder", "nn/mlp", "rollout/engine", "stages/grpo", "stages/common", "train/state", "train/update")
    for name in (*existing, "bench/peers", "data/packing", "config/__init__"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).with_suffix(".py").touch()
    (package / file).parent.mkdir(exist_ok=True)
    (package / file).write_text(line)
    assert any(map(is_wrong, arrows(package))) == wrong


@pytest.mark.parametrize(
    "start",
    [
        "import r1jax",
        "import r1jax.rewards.worker",
        "import r1jax.rewards; r1jax.rewards.load('accuracy')",
        "import runpy; sys.argv = ['r1jax', '--help']; runpy.run_module('r1jax', run_name='__main__')",
        "import runpy; sys.argv = ['r1jax', 'train', 'quickstart', '--help']; runpy.run_module('r1jax', run_name='__main__')",
    ],
)
def test_starts_without_jax(start):
    program = f"""
import sys
try:
    {start}
except SystemExit as end:
    assert not end.code, end.code
heavy = {{"jax", "jaxlib", "flax", "torch", "numpy"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
