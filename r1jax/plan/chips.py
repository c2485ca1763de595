"""What devices can do, as their vendors state it. Rates are peaks without sparsity; a run reaches a part of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GB, TB, TERA = 10**9, 10**12, 10**12
TPU_DOCS = "Google Cloud's TPU documentation, docs.cloud.google.com/tpu/docs"
V3 = "arXiv 2412.19437, section 3.2.2"


@dataclass(frozen=True)
class Chip:
    name: str
    """As clouds and sellers write it."""
    platform: Literal["tpu", "gpu", "cpu"]
    bf16: float
    """FLOP/s of bfloat16 matrix products with float32 sums."""
    fp8: float
    """FLOP/s of 8-bit float products; where there are none it is ``bf16``."""
    memory: float
    """Bytes."""
    bandwidth: float
    """Bytes/s of that memory."""
    link: float
    """Bytes/s that a device can send to others of its node, or of its slice: one direction."""
    network: float
    """Bytes/s that a device can send to another node or slice."""
    per_node: int
    """Devices behind one host."""
    source: str
    host: float | None = None
    """Bytes of the host's memory for each chip, as clouds sell them; None is not known."""
    dims: int = 0
    """Of a TPU slice's torus."""
    cores: int = 1
    """TensorCores of a chip, where the cloud's names count them."""
    devices: int = 1
    """That JAX sees of a chip; the other figures are a chip's."""
    compute: tuple[int, int] = (0, 0)
    """CUDA compute capability."""
    processors: int = 0
    """Streaming multiprocessors of a GPU."""
    shared_kib: int = 0
    """Shared memory of one of them."""
    l2_mib: int = 0
    clock_ghz: float = 0.0


# fmt: off
_TPUS = (
    #     name              bf16          fp8            memory    bandwidth   link (half of     network, host's NICs by chip
    #                                                                          both directions)
    Chip("v4",     "tpu",  275 * TERA,  275 * TERA,   32 * GB,  1200 * GB,  150 * GB,  6.25 * GB, 4,
         f"{TPU_DOCS}/v4: 275 TFLOPS, 32 GiB, 1,200 GB/s, six links of 50 GB/s each way by JAX's scaling book, half counted",
         host=100 * GB, dims=3, cores=2),
    Chip("v5e",    "tpu",  197 * TERA,  197 * TERA,   16 * GB,   819 * GB,  200 * GB,  3.1 * GB, 4,
         f"{TPU_DOCS}/v5e: 197 TFLOPS, 16 GB, 819 GB/s, 400 GB/s both ways; a pod of 256 has 6.4 Tb/s of network",
         host=48 * GB, dims=2),
    Chip("v5p",    "tpu",  459 * TERA,  459 * TERA,   95 * GB,  2765 * GB,  600 * GB,  6.25 * GB, 4,
         f"{TPU_DOCS}/v5p: 459 TFLOPS, 95 GB, 2,765 GB/s, 4,800 Gb/s; network: 200 Gb/s a host of 4 assumed",
         host=112 * GB, dims=3, cores=2),
    Chip("v6e",    "tpu",  918 * TERA,  918 * TERA,   32 * GB,  1638 * GB,  400 * GB, 12.5 * GB, 4,
         f"{TPU_DOCS}/v6e: 918 TFLOPS, 32 GB, 1,638 GB/s, 800 GB/s both ways; a pod of 256 has 25.6 Tb/s of network",
         host=180 * GB, dims=2),
    Chip("tpu7x",  "tpu", 2307 * TERA, 4614 * TERA,  192 * GB,  7380 * GB,  600 * GB, 12.5 * GB, 4,
         f"{TPU_DOCS}/tpu7x: 2,307 and 4,614 TFLOPS, 192 GiB, 7,380 GB/s, 1,200 GB/s both ways; network: 100 Gb/s a chip",
         host=240 * GB, dims=3, devices=2),
)
_GPUS = (
    Chip("h800",   "gpu",  989 * TERA, 1979 * TERA,   80 * GB,  3352 * GB,  160 * GB,   50 * GB, 8,
         f"as h100, the same die; NVLink 160 GB/s and InfiniBand 50 GB/s of a GPU: {V3}",
         host=234 * GB, compute=(9, 0), processors=132, shared_kib=228, l2_mib=50, clock_ghz=1.98),
    Chip("h100",   "gpu",  989 * TERA, 1979 * TERA,   80 * GB,  3352 * GB,  450 * GB,   50 * GB, 8,
         "NVIDIA H100 SXM data sheet; NVLink 900 GB/s both ways; a 400 Gb/s adapter for each GPU, as in DGX H100",
         host=234 * GB, compute=(9, 0), processors=132, shared_kib=228, l2_mib=50, clock_ghz=1.98),
    Chip("h200",   "gpu",  989 * TERA, 1979 * TERA,  141 * GB,  4800 * GB,  450 * GB,   50 * GB, 8,
         "NVIDIA H200 SXM data sheet; the rest as h100",
         host=234 * GB, compute=(9, 0), processors=132, shared_kib=228, l2_mib=50, clock_ghz=1.98),
    Chip("h20",    "gpu",  148 * TERA,  296 * TERA,   96 * GB,  4000 * GB,  450 * GB,   50 * GB, 8,
         "NVIDIA H20 as resellers list it (NVIDIA publishes no data sheet); the network as h100",
         host=234 * GB, compute=(9, 0), processors=78, shared_kib=228, l2_mib=60, clock_ghz=1.98),
    Chip("a100",   "gpu",  312 * TERA,  312 * TERA,   80 * GB,  2039 * GB,  300 * GB,   25 * GB, 8,
         "NVIDIA A100 80 GB SXM data sheet; NVLink 600 GB/s both ways; a 200 Gb/s adapter for each GPU, as in DGX A100",
         host=170 * GB, compute=(8, 0), processors=108, shared_kib=164, l2_mib=40, clock_ghz=1.41),
    Chip("a6000",  "gpu", 154.8 * TERA, 154.8 * TERA, 48 * GB,   768 * GB,   32 * GB,  3.1 * GB, 1,
         "NVIDIA RTX A6000 data sheet (309.7 with sparsity); PCIe 4.0; network: 25 Gb/s assumed",
         compute=(8, 6), processors=84, shared_kib=100, l2_mib=6, clock_ghz=1.8),
    Chip("a10g",   "gpu",   70 * TERA,   70 * TERA,   24 * GB,   600 * GB,   32 * GB,  3.1 * GB, 1,
         "NVIDIA A10G as AWS describes G5: tensor 70 TFLOPS, 24 GB, 600 GB/s; PCIe 4.0; network: 25 Gb/s",
         compute=(8, 6), processors=80, shared_kib=100, l2_mib=6, clock_ghz=1.71),
    Chip("l4",     "gpu",  121 * TERA,  242 * TERA,   24 * GB,   300 * GB,   32 * GB,  3.1 * GB, 1,
         "NVIDIA L4 data sheet (242 and 485 with sparsity); PCIe 4.0; network: 25 Gb/s assumed",
         host=48 * GB, compute=(8, 9), processors=58, shared_kib=100, l2_mib=48, clock_ghz=2.04),
    Chip("t4",     "gpu",   65 * TERA,   65 * TERA,   16 * GB,   320 * GB,   16 * GB,  3.1 * GB, 1,
         "NVIDIA T4 data sheet: float16, for it has no bfloat16 products, which run slower; PCIe 3.0; network: 25 Gb/s assumed",
         compute=(7, 5), processors=40, shared_kib=64, l2_mib=4, clock_ghz=1.59),
    Chip("rtx3090", "gpu",  71 * TERA,   71 * TERA,   24 * GB,   936 * GB,   32 * GB,  1.25 * GB, 1,
         "NVIDIA GA102 white paper: float16 with float32 sums 71; PCIe 4.0; network: 10 Gb/s assumed",
         compute=(8, 6), processors=82, shared_kib=100, l2_mib=6, clock_ghz=1.7),
    Chip("rtx4090", "gpu", 165.2 * TERA, 330.3 * TERA, 24 * GB, 1008 * GB,   32 * GB,  1.25 * GB, 1,
         "NVIDIA Ada white paper: with float32 sums 165.2 and 330.3; PCIe 4.0; network: 10 Gb/s assumed",
         compute=(8, 9), processors=128, shared_kib=100, l2_mib=72, clock_ghz=2.52),
    Chip("rtx5090", "gpu", 209.5 * TERA, 419 * TERA,  32 * GB,  1792 * GB,   64 * GB,  1.25 * GB, 1,
         "NVIDIA RTX Blackwell white paper: with float32 sums 209.5 and 419; PCIe 5.0; network: 10 Gb/s assumed",
         compute=(12, 0), processors=170, shared_kib=100, l2_mib=96, clock_ghz=2.41),
)
# fmt: on
CHIPS: dict[str, Chip] = {chip.name: chip for chip in (*_TPUS, *_GPUS)}
