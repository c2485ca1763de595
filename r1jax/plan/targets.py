"""How compilers are told of devices that are not here."""

from __future__ import annotations

from typing import Any

from r1jax.plan.chips import Chip
from r1jax.plan.topology import Topology

_THREADS = {(7, 5): 1024, (8, 0): 2048, (9, 0): 2048}
"""Threads of a streaming multiprocessor, by compute capability; 1536 for the others."""


def describe(topology: Topology) -> dict[str, Any]:
    """Arguments of ``jax.experimental.topologies.get_topology_desc``."""
    if topology.chip.platform == "gpu":
        per_node = topology.per_node
        return {
            "platform": "cuda", "target_config": textproto(topology.chip),
            "topology": f"1x{topology.chips // per_node}x{per_node}",
        }  # fmt: skip
    found: dict[str, Any] = {"platform": "tpu", "topology_name": topology.name}
    if topology.chip.name == "v4":  # as one device per chip, as its runtime makes it
        found["chip_config_name"] = "megacore"
    if topology.chips == 1:
        found["chips_per_host_bounds"] = [1, 1, 1]
    return found


def textproto(chip: Chip) -> str:
    """A GPU as XLA's ``GpuTargetConfigProto``, from the vendor's figures; registers and threads are the architecture's (CUDA
    programming guide, "Compute Capabilities")."""
    major, minor = chip.compute
    return f"""gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {(chip.shared_kib - 1) * 1024}
  shared_memory_per_core: {chip.shared_kib * 1024} threads_per_core_limit: {_THREADS.get(chip.compute, 1536)}
  core_count: {chip.processors} fpus_per_core: {128 if major >= 8 and chip.compute != (8, 0) else 64}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {int(chip.bandwidth)} l2_cache_size: {chip.l2_mib << 20} clock_rate_ghz: {chip.clock_ghz}
  device_memory_size: {int(chip.memory)}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 7 }} runtime_version {{ major: 12 minor: 8 }}
device_description_str: "NVIDIA {chip.name.upper()}"
"""
