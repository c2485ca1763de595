"""Who trains in a run directory on this machine: the kernel's lock on a file in it, which ends with its holder."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import TextIO

from r1jax import config, mirror

FILE = ".lock"
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


def take(path: Path) -> TextIO:
    """The lock of a run directory, held until the file is closed or the process ends.

    Raises:
      config.ConfigError: another process holds it.
    """
    file = open(path / FILE, "a+")  # noqa: SIM115 (open for as long as the run)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise config.ConfigError(
            f"another process (pid {holder}) is training in {mirror.there(path)}; stop it or name another directory"
        ) from error
    except OSError as error:
        # Some cluster file systems have no locks; better to train there without one than not at all.
        if error.errno not in _NO_LOCKS_HERE:
            file.close()
            raise
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def is_taken(path: Path) -> bool | None:
    """Whether a process of this machine holds it now; None where the file system has no locks."""
    try:
        with open(Path(path) / FILE) as file:
            # Shared, and let go at once: it is in the way of a run that starts in this very moment only.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        return None if error.errno in _NO_LOCKS_HERE else False
    return False
