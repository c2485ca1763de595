"""Every test runs on the CPU, on a host that shows 8 devices, so one process can hold a mesh; the others use the first."""

import os
import sys

import pytest

if "jax" in sys.modules:  # it reads these once
    raise pytest.UsageError("jax was imported before tests/conftest.py; run pytest without the plugin that imports it")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads wait for each other longer than these products take
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
