"""Memory that importing takes beside the parameters themselves: ``python -m r1jax.bench.import_memory [--gigabytes 2]``.

Makes a random Qwen3-MoE directory in bfloat16 and loads it in that dtype on the CPU, each time in a process of its own:

    1 device    how far VmHWM, the most memory that was resident, rises, as a multiple of the bytes held
    8 devices   the most that was on the host outside the devices' arrays, as a multiple of the largest tensor
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import jax
import ml_dtypes
import numpy as np

from r1jax import config, loading, sharding
from r1jax.convert import hf_config, names
from r1jax.convert.write import Piece, Tensor, write_json, write_shards
from r1jax.models import decoder

LAYER = config.Model(
    vocab_size=32_000,
    d_model=1024,
    segments=(config.Segment("moe", 1),),
    attention=config.GQA(n_heads=16, n_kv_heads=4, head_dim=64, qk_norm=True),
    moe=config.MoE(n_experts=64, top_k=8, d_ff=512, n_shared=0, scoring="softmax", bias=False),
    param_dtype="bfloat16",
)
MESHES = {1: config.Mesh(1, 1, 1, 1, 1), 8: config.Mesh(1, 2, 2, 2, 1)}


def main(arguments: Sequence[str]) -> None:
    match arguments:
        case []:
            gigabytes = 2.0
        case ["--gigabytes", number]:
            gigabytes = float(number)
        case _:
            raise SystemExit(__doc__.partition("\n")[0])
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), gigabytes)
        for devices in MESHES:
            program = f"from r1jax.bench import import_memory; import_memory.measure({folder!r}, {devices})"
            flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
            subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | flags)


def make(folder: Path, gigabytes: float) -> None:
    """Writes as many layers as come nearest to the size."""
    sizes = [sum(2 * np.prod(entry.shape) for entry in entries(layers)) for layers in (1, 2)]
    layers = max(1, round((gigabytes * 1e9 - sizes[0]) / (sizes[1] - sizes[0])) + 1)
    rng = np.random.default_rng(0)

    def piece(entry: names.Entry) -> Piece:
        def draw():  # bits of numbers between 0 and 1
            return [rng.integers(0, 0x3F80, entry.shape, np.uint16).view(ml_dtypes.bfloat16)]

        return Piece((Tensor(entry.name, "BF16", entry.shape),), draw)

    write_shards(folder, [piece(entry) for entry in entries(layers)], max_shard_bytes=5 * 10**8)
    write_json(folder / "config.json", hf_config.write(model(layers)))


def model(layers: int) -> config.Model:
    return dataclasses.replace(LAYER, segments=(config.Segment("moe", layers),))


def entries(layers: int) -> list[names.Entry]:
    return names.entries(model(layers), "qwen3_moe")


def measure(folder: str, devices: int) -> None:
    """Loads the directory and prints what that took."""
    mesh = sharding.make_mesh(MESHES[devices])
    opened = loading.open_model(folder)
    where = sharding.param_shardings(decoder.specs(opened.model), mesh, sharding.TRAIN)
    largest = max(2 * np.prod(entry.shape) for entry in entries(opened.model.n_layers))
    if devices > 1:  # it slows the load, so not where that is timed
        tracemalloc.start()
    before, began = peak_resident(), time.monotonic()
    params = jax.block_until_ready(opened.load(decoder.specs(opened.model), where))
    seconds, risen = time.monotonic() - began, peak_resident() - before
    held = sum(shard.data.nbytes for x in jax.tree.leaves(params) for shard in x.addressable_shards)
    told = f"devices {devices}: {held / 1e9:.3f} GB held, VmHWM rose by {risen / 1e9:.3f} GB = {risen / held:.3f} x"
    if devices > 1:
        staged = tracemalloc.get_traced_memory()[1]
        print(f"{told}; at most {staged / 1e6:.0f} MB on the host = {staged / largest:.2f} x the largest tensor")
    else:
        print(f"{told}; {seconds:.1f} s")


def peak_resident() -> int:
    """VmHWM in bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main(sys.argv[1:])
