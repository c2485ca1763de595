"""The model that is measured: one of those that other commands take, or random weights of a shape."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from r1jax import config, loading, params, sharding
from r1jax.config import ConfigError
from r1jax.config.bench import Measuring
from r1jax.config.model import DType
from r1jax.config.shapes import random_shape
from r1jax.convert import export as hugging_face
from r1jax.data import tokenizer as tokenizers
from r1jax.data.tokenizer import Tokenizer
from r1jax.models import decoder


@dataclass(frozen=True)
class Subject:
    model: config.Model
    opened: loading.Opened | None
    """None: random weights."""
    seed: int
    mesh: jax.sharding.Mesh

    @property
    def tokenizer(self) -> Tokenizer:
        """Of random weights, that of bytes."""
        return tokenizers.byte_tokenizer() if self.opened is None else self.opened.tokenizer

    def load(self, specs: Any, shardings: Any) -> Any:
        """The weights in the types of ``specs``, where ``shardings`` says; random ones are made there."""
        if self.opened is not None:
            return self.opened.load(specs, shardings)
        return jax.jit(lambda key: params.init(specs, key), out_shardings=shardings)(jax.random.key(self.seed))

    def export(self, folder: Path, tokenizer: Tokenizer | None = None) -> None:
        """The same weights as a Hugging Face directory, for another package to load.

        Raises:
          ConfigError: no released family can say what the model does.
        """
        planned = hugging_face.plan(self.model, tokenizer, self.model.param_dtype, self.opened and self.opened.origin)
        specs = decoder.specs(self.model)
        hugging_face.write(planned, self.load(specs, sharding.param_shardings(specs, self.mesh, sharding.TRAIN)), folder)


def open_subject(command: Measuring, param_dtype: DType | None = None, remat: bool = False) -> Subject:
    """``command.model`` with its types as asked.

    Args:
      param_dtype: None is float32, of random weights the shape's.

    Raises:
      ConfigError: there is no such model, or there are several processes.
    """
    if jax.process_count() > 1:
        raise ConfigError("r1jax bench measures one process; start it without R1JAX_COORDINATOR, srun or mpirun")
    shape = random_shape(command.model)
    opened = None if shape else loading.open_model(command.model)
    model = shape or dataclasses.replace(opened.model, param_dtype="float32")
    types = {"matmul_dtype": command.matmul_dtype, "dtype": command.dtype, "param_dtype": param_dtype}
    chosen = {name: dtype for name, dtype in types.items() if dtype is not None}
    model = dataclasses.replace(model, remat="layer" if remat else "none", **chosen)
    return Subject(model, opened, command.seed, sharding.make_mesh(command.mesh))


def device_of(mesh: jax.sharding.Mesh) -> str:
    """Where torch works: ``cpu`` or ``cuda``.

    Raises:
      ConfigError: torch has nothing like our devices.
    """
    platform = mesh.devices.flat[0].platform
    if platform not in ("cpu", "gpu"):
        raise ConfigError(f"--against compares on the same device, and torch does not run on a {platform.upper()}")
    if mesh.size > 1 and platform == "gpu":
        raise ConfigError(f"--against compares one device, and there are {mesh.size}; set --mesh.fsdp 1")
    return "cpu" if platform == "cpu" else "cuda"
