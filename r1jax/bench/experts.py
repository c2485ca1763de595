"""What experts cost, grouped by choice and dense: ``python -m r1jax.bench.experts [--tokens 16384]``.

One layer of experts with 8, 64 and 256 of them, of which two take each token. Forward and backward in float32: of the experts
alone, the same work per token, and with the router, whose own grows with the experts. And decoding: forward only, 64 tokens,
kernels held in bfloat16. The forms take turns; medians are printed. Every expert for every token is left out where it would
take more than a few seconds.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import config
from r1jax.nn import moe

EXPERTS, TOP_K, WIDTH, ROUNDS = (8, 64, 256), 2, 128, 7
FORMS = {"grouped": moe.experts_grouped, "dense": moe.experts_dense}
DENSE_UP_TO = 16384 * 8
"""Tokens times experts of a gradient."""


def drawn(n_experts: int, tokens: int, matmul_dtype: str) -> tuple[config.Model, dict, jax.Array]:
    settings = config.MoE(n_experts=n_experts, top_k=TOP_K, d_ff=WIDTH, n_shared=0, bias=False)
    model = config.Model(d_model=WIDTH, segments=(config.Segment("moe"),), moe=settings, matmul_dtype=matmul_dtype)
    rng = np.random.default_rng(0)
    shapes = {"router": (WIDTH, n_experts)} | dict.fromkeys(("gate", "up", "down"), (n_experts, WIDTH, WIDTH))
    params = {name: jnp.asarray(rng.standard_normal(shape) / WIDTH**0.5, jnp.float32) for name, shape in shapes.items()}
    return model, params, jnp.asarray(rng.standard_normal((1, tokens, WIDTH)), jnp.float32)


def layer(params, x, form, model):
    return form(params, x, moe.route(params, x, model.moe), model)


def experts(n_experts: int, tokens: int, form: str):
    model, params, x = drawn(n_experts, tokens, "float32")
    routing = moe.route(params, x, model.moe)
    grad = jax.jit(jax.grad(lambda params, x, routing: (FORMS[form](params, x, routing, model) ** 2).sum(), (0, 1)))
    return partial(grad, params, x, routing)


def update(n_experts: int, tokens: int, form: str):
    model, params, x = drawn(n_experts, tokens, "float32")
    grad = jax.jit(jax.grad(lambda params, x: (layer(params, x, FORMS[form], model) ** 2).sum(), (0, 1)))
    return partial(grad, params, x)


def decode(n_experts: int, tokens: int, form: str):
    model, params, x = drawn(n_experts, tokens, "bfloat16")
    params = {name: a if name == "router" else a.astype(jnp.bfloat16) for name, a in params.items()}
    return partial(jax.jit(partial(layer, form=FORMS[form], model=model)), params, x)


def compare(make, tokens: int, dense_up_to: int) -> None:
    runs = {(f, e): make(e, tokens, f) for f in FORMS for e in EXPERTS if f == "grouped" or e * tokens <= dense_up_to}
    times: dict[tuple[str, int], list[float]] = {key: [] for key in runs}
    for turn in range(ROUNDS + 1):
        for key, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if turn:  # the first compiles
                times[key].append(time.perf_counter() - start)
    medians = {key: statistics.median(seconds) for key, seconds in times.items()}
    for (form, e), median in medians.items():
        spread = f"{1e3 * min(times[form, e]):.2f} to {1e3 * max(times[form, e]):.2f}"
        ratio = median / medians[form, EXPERTS[0]]
        print(f"{make.__name__:7}{form:8}{e:4} experts {1e3 * median:9.2f} ms   ({spread}), {ratio:.2f} x {EXPERTS[0]} experts")
    gain = medians["dense", EXPERTS[0]] / medians["grouped", EXPERTS[0]]
    print(f"{make.__name__:7}dense / grouped at {EXPERTS[0]}: {gain:.2f}")


def main(arguments: Sequence[str]) -> None:
    match arguments:
        case []:
            tokens = 16384
        case ["--tokens", number]:
            tokens = int(number)
        case _:
            raise SystemExit(__doc__.partition("\n")[0])
    compare(experts, tokens, DENSE_UP_TO)
    compare(update, tokens, DENSE_UP_TO)
    compare(decode, 64, DENSE_UP_TO)


if __name__ == "__main__":
    main(sys.argv[1:])
