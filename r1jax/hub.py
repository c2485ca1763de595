"""A name becomes local files. The only room that may reach out for them."""

from __future__ import annotations

from pathlib import Path


def resolve(name: str) -> Path:
    """The local file or directory that ``name`` stands for.

    Raises:
      ValueError: there is no such file or directory; ``gs://`` and Hub names are not fetched.
    """
    if "://" in name:
        scheme = name.split("://")[0]
        raise ValueError(f"{name}: {scheme}:// names are not fetched; copy the files to this machine and give their path")
    path = Path(name).expanduser()
    if not path.exists():
        raise ValueError(f"{name}: no such file or directory; Hub names are not fetched, so download it and give its path")
    return path
