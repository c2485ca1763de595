"""SwiGLU feed-forward (Shazeer 2020): ``down(silu(gate x) * up x)``."""

from __future__ import annotations

import jax

from r1jax import config
from r1jax.nn.matmul import project
from r1jax.params import ParamSpec
from r1jax.sharding import constrain


def specs(model: config.Model, width: int) -> dict:
    def kernel(shape, axes, inputs=1):
        return ParamSpec(shape, axes, std=model.init_std, dtype=model.param_dtype, inputs=inputs)

    return {
        "gate": kernel((model.d_model, width), ("embed", "mlp")),
        "up": kernel((model.d_model, width), ("embed", "mlp")),
        "down": kernel((width, model.d_model), ("mlp", "embed")),
    }


def mlp(params, x: jax.Array, model: config.Model) -> jax.Array:
    """[B, T, D] -> [B, T, D]."""
    hidden = jax.nn.silu(project(x, params["gate"], model.matmul_dtype)) * project(x, params["up"], model.matmul_dtype)
    return project(constrain(hidden, "batch", "sequence", "mlp"), params["down"], model.matmul_dtype)
