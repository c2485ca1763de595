"""Which of several processes this one is, and where they meet: by flags, the environment or the cluster. Loads no jax."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field

from r1jax.config import ConfigError

AUTO = "auto"
COORDINATOR, COUNT, RANK = "R1JAX_COORDINATOR", "R1JAX_NUM_PROCESSES", "R1JAX_PROCESS_ID"
DEVICES = "JAX_LOCAL_DEVICE_IDS"  # jax's own variable
PORTS = 61440, 4096  # where jax puts the coordinator of a SLURM job: the first port, and how many


@dataclass(frozen=True)
class Place:
    """One process of several."""

    coordinator: str
    """HOST:PORT at which process 0 listens; ``auto``: jax asks the cluster, and finds the two below too."""
    count: int | None = None
    """Processes in all."""
    rank: int | None = None
    """Which of them this is, from 0."""
    devices: tuple[int, ...] = field(default=(), compare=False)
    """Which of the GPUs that it sees are its own; empty: all."""

    def __post_init__(self):
        if self.coordinator == AUTO:
            return
        if not re.fullmatch(r"\S+:\d+", self.coordinator):
            raise ConfigError(f"the coordinator is {self.coordinator!r}; it must be HOST:PORT of process 0, or {AUTO}")
        if not 0 <= self.rank < self.count:
            raise ConfigError(f"the process is number {self.rank} of {self.count}; numbers go from 0 to {self.count - 1}")

    def variables(self) -> dict[str, str]:
        """What tells a process that this is its place."""
        told = {COORDINATOR: self.coordinator, COUNT: self.count, RANK: self.rank}
        if self.devices:
            told[DEVICES] = ",".join(map(str, self.devices))
        return {name: str(value) for name, value in told.items() if value is not None}

    def reach(self, seconds: float) -> None:
        """Returns once process 0 listens, or at process 0 if it can. jax itself would end the process without a word of ours.

        Raises:
          ConfigError: the port is taken, or nobody answers in this time.
        """
        if self.coordinator == AUTO:
            return
        host, _, port = self.coordinator.rpartition(":")
        if self.rank == 0:
            _check_free(int(port))
            return
        deadline = time.monotonic() + seconds
        while True:
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=min(5.0, seconds)).close()
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise ConfigError(
                        f"process {self.rank} of {self.count}: nobody answers at {self.coordinator} within {seconds:g} s "
                        f"({error}); is process 0 running there, and the port open between the machines?"
                    ) from error
            time.sleep(0.2)


def find(
    processes: int = 0, coordinator: str | None = None, count: int | None = None, rank: int | None = None
) -> list[Place]:
    """The places that this command starts processes for: empty if it is one process on its own, ``processes`` of them on this
    machine alone, or one of several that others start.

    Args:
      processes, coordinator, count, rank: what flags say. Without them the environment decides: R1JAX_COORDINATOR,
        R1JAX_NUM_PROCESSES and R1JAX_PROCESS_ID; or a SLURM step of more than one task.

    Raises:
      ConfigError: only some are given, or they contradict each other.
    """
    by_flags = {"--coordinator": coordinator, "--process-count": count, "--process-id": rank}
    if any(value is not None for value in by_flags.values()):
        places = [_by_hand(by_flags, "all three say where a process belongs")]
    else:
        places = [place] if (place := from_environment()) else []
    if processes and places:
        raise ConfigError(
            f"--processes {processes} starts all processes on this machine, but {places[0].coordinator} is said to coordinate "
            "processes that are started one by one; leave one of them out"
        )
    return _here(processes) if processes > 1 else places


def from_environment() -> Place | None:
    """None for a process on its own.

    Raises:
      ConfigError: a variable is missing or no number.
    """
    if (coordinator := os.environ.get(COORDINATOR)) is not None:
        if coordinator == AUTO:
            return Place(AUTO)
        numbers = {name: os.environ.get(name) for name in (COUNT, RANK)}
        for name, text in numbers.items():
            if text is None or not text.isdecimal():
                raise ConfigError(f"{COORDINATOR} is set, so {name} must be a number; it is {text or ''!r}")
        return Place(coordinator, *map(int, numbers.values()))
    # The step's count, not the job's: a batch script that calls r1jax without srun is one process of a job of many.
    if os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        return _in_slurm()
    return None


def _by_hand(flags: dict, why: str) -> Place:
    coordinator, count, rank = flags.values()
    if coordinator == AUTO:
        return Place(AUTO)
    if missing := [name for name, value in flags.items() if value is None]:
        raise ConfigError(f"give {' and '.join(missing)} too: {why} (--coordinator {AUTO} alone lets jax ask the cluster)")
    return Place(coordinator, count, rank)


def _here(processes: int) -> list[Place]:
    if "tpu" in os.environ.get("JAX_PLATFORMS", "").split(","):
        raise ConfigError(f"--processes {processes}: one process takes all TPU chips of a machine; leave it out")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    gpus = visible_gpus()
    if gpus % processes:
        raise ConfigError(f"--processes {processes} does not divide the {gpus} GPUs of this machine; choose another number")
    return [Place(f"127.0.0.1:{port}", processes, i, share(i, processes, gpus)) for i in range(processes)]


def _in_slurm() -> Place:
    """As jax would, except that a task that is alone on its node takes all its GPUs, and one that SLURM bound to its own
    takes these."""

    def number(name: str) -> int:
        text = os.environ.get(name, "")
        if not text.isdecimal():
            raise ConfigError(f"this is a SLURM step of several tasks, so {name} must be a number; it is {text!r}")
        return int(text)

    first, several = PORTS
    port = os.environ.get("JAX_COORDINATOR_PORT") or first + number("SLURM_JOB_ID") % several
    host = first_host(os.environ.get("SLURM_STEP_NODELIST", ""))
    beside = tasks_on_node(os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1"), number("SLURM_NODEID"))
    gpus = visible_gpus()
    bound = gpus < int(os.environ.get("SLURM_GPUS_ON_NODE", gpus))
    devices = () if bound or beside == 1 or gpus % beside else share(number("SLURM_LOCALID"), beside, gpus)
    return Place(f"{host}:{port}", number("SLURM_STEP_NUM_TASKS"), number("SLURM_PROCID"), devices)


def first_host(nodes: str) -> str:
    """``node001`` of ``node[001-015,020],other``.

    Raises:
      ConfigError: there is none.
    """
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+))?", nodes)
    if match is None:
        raise ConfigError(f"SLURM_STEP_NODELIST is {nodes!r}, which names no host")
    return match[1] + (match[2] or "")


def tasks_on_node(said: str, node: int) -> int:
    """3 of ``8(x2),3`` for node 2."""
    counts = [
        int(n) for n, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", said) for _ in range(int(times or 1))
    ]
    return counts[min(node, len(counts) - 1)] if counts else 1


def visible_gpus() -> int:
    """How many NVIDIA GPUs a process started here would see; 0 where JAX_PLATFORMS leaves them out."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return 0
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([name for name in named.split(",") if name.strip()])
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return sum(line.startswith("GPU ") for line in listed.splitlines())


def share(local: int, processes: int, gpus: int) -> tuple[int, ...]:
    """The GPUs of one of several processes on a machine."""
    each = gpus // processes
    return tuple(range(local * each, (local + 1) * each))


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            raise ConfigError(
                f"process 0 cannot listen at port {port}: {error.strerror}; choose another port for the coordinator"
            ) from error
