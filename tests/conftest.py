"""Every test runs on the CPU, on a host that shows 8 devices, so one process can hold a mesh; the others use the first."""

import os
import sys
from importlib import metadata

import pytest

if "jax" in sys.modules:  # it reads these once
    raise pytest.UsageError("jax was imported before tests/conftest.py; run pytest without the plugin that imports it")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads wait for each other longer than these products take
# Compiling is most of what the tests do, and their programs run for milliseconds: so with few optimisations, and the older of
# XLA's two ways to emit fused loops, by a flag that other versions may not know. Together they halve the suite's time.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
_FLAGS = " --xla_force_host_platform_device_count=8"
if metadata.version("jaxlib").startswith("0.10."):
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + _FLAGS
