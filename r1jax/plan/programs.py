"""The update and the decode loop of a stage, compiled for devices that are not here; run as a process of its own.

    python -m r1jax.plan.programs REQUEST.json RESULT.json

``compiling.compile_stage`` starts it: the platform is chosen before jax is imported, and one process may load libtpu.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from r1jax import config, sharding
from r1jax.config import stages
from r1jax.plan import hlo, targets, topology
from r1jax.plan.activations import micro_batch
from r1jax.plan.layout import device_bytes, host_bytes
from r1jax.plan.sampling import cache_length, longest_answer
from r1jax.rollout.sampler import Sampler
from r1jax.train.offload import HOST
from r1jax.train.update import Trainer


def main(request: Path, result: Path) -> None:
    asked = json.loads(request.read_text())
    kind = {"grpo": stages.GRPO, "sft": stages.SFT}[asked["stage"]["kind"]]
    stage, model = config.from_json(kind, asked["stage"]), config.from_json(config.Model, asked["model"])
    mesh = sharding.make_mesh(stage.mesh, devices(asked["topology"]))
    try:
        found = PROGRAMS[asked["program"]](stage, model, mesh)
    except jax.errors.JaxRuntimeError as error:  # the TPU's compiler refuses what does not fit
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        found = {"refused": str(error)[:20_000]}
    result.write_text(json.dumps(found))


def devices(name: str) -> list[jax.Device]:
    if name == topology.HERE:
        return jax.devices()
    return topologies.get_topology_desc(**targets.describe(topology.parse(name))).devices


def update(stage: config.Stage, model: config.Model, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """One update of one micro-batch; how many of them there are makes no difference to the program but for the batch's size.

    This JAX cannot say of a GPU that is only described that an array lies on its host. What the stage rests there is then
    compiled as if it were on the device and taken off its sum afterwards, and ``remat`` offload is compiled as ``layer``.
    """
    asked, away = stage.offload, not _reaches_host(mesh)
    if away:
        stage = dataclasses.replace(stage, offload=())
        model = dataclasses.replace(model, remat="layer" if model.remat == "offload" else model.remat)
    trainer = Trainer(stage, model, mesh)
    state = trainer.abstract()
    batch = micro_batch(stage, (1, stage.micro_batch, stage.sequence_length))
    sizes = {
        "optimizer": device_bytes(state.opt_state) + device_bytes(state.master),
        "reference": device_bytes(state.reference),
    }
    moved = sum(size for name, size in sizes.items() if away and name in asked)
    parts = {"weights": device_bytes(state.params)} | {n: size for n, size in sizes.items() if not (away and n in asked)}
    tokens = stage.micro_batch * stage.sequence_length * model.d_model
    found = compiled(lambda: trainer.lower_update(batch), mesh, parts, host_bytes(state) + moved, tokens, model)
    return found | {"arguments": found["arguments"] - moved}


def _reaches_host(mesh: jax.sharding.Mesh) -> bool:
    return NamedSharding(mesh, PartitionSpec()).with_memory_kind(HOST).memory_kind == HOST


def decode(stage: config.Stage, model: config.Model, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """The decode loop, with the longest cache; its figures are those of one turn, a token for every slot."""
    where = sharding.sampler_mesh(stage.engine, mesh)
    routes = isinstance(stage, config.GRPO) and stage.routing_replay
    sampler = Sampler(model, stage.engine, where, end_ids=(1,), record_routes=routes, adapters=stage.lora)
    sampling = dataclasses.replace(stage.sampling, max_new_tokens=longest_answer(stage))
    length = cache_length(stage.engine, sampling.max_new_tokens)
    params, state = sampler.abstract(length, sampling.max_new_tokens)
    cache = jax.tree.leaves(state.cache)
    held, whole = device_bytes(state.cache), sum(x.size * x.dtype.itemsize for x in cache)
    parts = {"weights": device_bytes(params), "cache": held}
    found = compiled(lambda: sampler.lower_decode(length, sampling), where, parts, 0, sampler.slots * model.d_model, model)
    return found | {"cache_copies": held * where.size / whole, "cache_length": length, "slots": sampler.slots}


PROGRAMS = {"update": update, "decode": decode}
EFFORT = {"exec_time_optimization_effort": -1.0}
"""Of a TPU's compiler: what it tells is asked for, not a fast program."""


def compiled(
    lower: Callable, mesh: jax.sharding.Mesh, parts: dict[str, int], host: int, tokens: int, model: config.Model
) -> dict[str, Any]:
    """Compiles and reads what the compiler tells.

    Args:
      parts: name -> bytes per device of arguments.
      tokens: numbers in the hidden states of all tokens.
    """
    began = time.monotonic()
    program = lower()
    lowered = time.monotonic()
    program = program.compile(EFFORT if mesh.devices.flat[0].platform == "tpu" else None)
    seconds = time.monotonic() - lowered
    told = program.memory_analysis()
    text = program.as_text()
    found = hlo.collectives(text, dict(mesh.shape), [node(d) for d in mesh.devices.flat])
    return {
        "lower_seconds": lowered - began,
        "compile_seconds": seconds,
        "parts": parts,
        "arguments": told.argument_size_in_bytes,
        "temporary": told.temp_size_in_bytes,
        "new_outputs": told.output_size_in_bytes - told.alias_size_in_bytes,
        "code": told.generated_code_size_in_bytes,
        "host": host,
        "collectives": [dataclasses.asdict(c) for c in found],
        "gathers": list(whole_gathers(found, tokens, model)),
        "largest": hlo.largest_buffers(text),
    }


def node(device: jax.Device) -> int:
    """Within which a device's own links go: of a TPU its slice, of which a description is one, of others the host."""
    if device.platform == "tpu":
        return device.slice_index if hasattr(device, "slice_index") else 0
    return device.process_index


def whole_gathers(found: list[hlo.Collective], tokens: int, model: config.Model) -> Iterator[str]:
    """All-gathers whose result could be the hidden states of all tokens, or one kernel of all experts."""
    itemsize = jnp.dtype(model.dtype).itemsize
    experts = model.moe.n_experts * model.d_model * model.moe.d_ff if model.moe else 0
    for c in found:
        if c.kind == "all-gather" and len(c.axes):
            if c.largest >= tokens * itemsize:
                yield f"all tokens over {', '.join(c.axes)}: {c.largest} bytes"
            if experts and c.largest >= experts:
                yield f"a kernel of all experts over {', '.join(c.axes)}: {c.largest} bytes"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
