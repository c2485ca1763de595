"""How an array comes from one layout to another on the same devices without ever being whole on one.

Where trainer and sampler have different meshes, XLA's partitioner may know no way from one layout to the other and then copies
the array as a whole to every device. It knows all single steps: an axis of the mesh that moves from one dimension of the array
to another (all-to-all), that begins to split one, or ceases to (all-gather).
"""

from __future__ import annotations

import math

from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def way(ndim: int, source: NamedSharding, target: NamedSharding) -> tuple[NamedSharding, ...]:
    """Layouts on the way from ``source``, which is the first, to one that has as many parts of each dimension as ``target``;
    from there to ``target`` whole parts are exchanged. Empty where both have one mesh: there XLA finds a way.

    At no step has a device more than in the larger of the two layouts. Axes go in prime factors, so that a part of one can.
    """
    if source.mesh.shape == target.mesh.shape:
        return ()
    factors = {name: _primes(size) for name, size in source.mesh.shape.items()}
    sizes = {f"{name}{i}": p for name, primes in factors.items() for i, p in enumerate(primes)}
    mesh = Mesh(source.mesh.devices.reshape(list(sizes.values())), list(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    parts = [[f"{name}{i}" for name in names for i in range(len(factors[name]))] for names in _names(source, ndim)]
    wanted = [math.prod(target.mesh.shape[name] for name in names) for names in _names(target, ndim)]

    def fits(to: int, axis: str) -> bool:
        return wanted[to] % math.prod(sizes[a] for a in (*parts[to], axis)) == 0

    def here() -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*(tuple(names) or None for names in parts)))

    found = [here()]
    for axis in sizes:  # first those that split nothing yet: a device then has less
        if not any(axis in names for names in parts) and (to := [d for d in range(ndim) if fits(d, axis)]):
            parts[to[0]].append(axis)
            found.append(here())
    for names, count in zip(parts, wanted, strict=True):
        while count % math.prod(sizes[a] for a in names):  # the last axis is the one that parts side by side differ in
            axis = names.pop()
            if to := [d for d in range(ndim) if parts[d] is not names and fits(d, axis)]:
                parts[to[0]].append(axis)
            found.append(here())
    return tuple(found)


def _names(where: NamedSharding, ndim: int) -> list[tuple[str, ...]]:
    """The mesh axes that split each dimension."""
    entries = [*where.spec, *[None] * (ndim - len(where.spec))]
    return [() if e is None else (e,) if isinstance(e, str) else tuple(e) for e in entries]


def _primes(n: int) -> list[int]:
    found, p = [], 2
    while n > 1:
        while n % p == 0:
            found.append(p)
            n //= p
        p += 1
    return found
