"""FP8 weights with a factor per block, against torch's float8 and loops over single numbers."""

import ml_dtypes
import numpy as np
import pytest
import torch

from r1jax.convert import fp8

pytestmark = pytest.mark.parity

RANDOM = np.random.default_rng(0)


def dequantize(q: np.ndarray, scale_inv: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """float32, number by number."""
    values = torch.from_numpy(q.view(np.uint8)).view(torch.float8_e4m3fn).float()
    factors = torch.from_numpy(scale_inv)
    for i in range(q.shape[0]):
        for j in range(q.shape[1]):
            values[i, j] *= factors[i // block[0], j // block[1]]
    return values.numpy()


def draw(rows: int, columns: int, block: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    q = RANDOM.integers(0, 255, (rows, columns)).astype(np.uint8)
    q[q == 0x7F] = 0  # not a number, nor is 0xFF
    shape = (-(-rows // block[0]), -(-columns // block[1]))
    return q.view(ml_dtypes.float8_e4m3fn), RANDOM.uniform(1e-4, 1e-2, shape).astype(np.float32)


@pytest.mark.parametrize(
    ("rows", "columns", "block"),
    [(576, 20, (128, 128)), (32, 256, (128, 128)), (5, 3, (128, 128)), (50, 70, (16, 32))],  # R1's kv_a_proj has 576 rows
)
def test_dequantize_multiplies_each_number_by_its_blocks_factor(rows, columns, block):
    q, scale_inv = draw(rows, columns, block)
    expected = dequantize(q, scale_inv, block)
    np.testing.assert_array_equal(fp8.dequantize(q, scale_inv, block), expected)
    rounded = torch.from_numpy(expected).bfloat16().view(torch.uint16).numpy()
    np.testing.assert_array_equal(fp8.dequantize(q, scale_inv, block, ml_dtypes.bfloat16).view(np.uint16), rounded)


def test_kv_a_projs_factors():
    assert fp8.scale_shape((576, 7168), (128, 128)) == (5, 56)


def test_dequantize_takes_each_expert_by_itself():
    (q, scales), block = zip(*[draw(20, 12, (16, 8)) for _ in range(3)], strict=True), (16, 8)
    expected = np.stack([dequantize(*expert, block) for expert in zip(q, scales, strict=True)])
    np.testing.assert_array_equal(fp8.dequantize(np.stack(q), np.stack(scales), block), expected)


def test_dequantize_refuses_factors_of_another_block_size():
    q, scale_inv = draw(576, 128, (128, 128))
    with pytest.raises(ValueError, match=r"\(5, 1\) do not fit a weight \(576, 128\) in blocks of \(64, 128\)"):
        fp8.dequantize(q, scale_inv, (64, 128))


def test_quantize_by_hand():
    w = np.zeros((3, 5), np.float32)
    w[0, :2] = [-2.0, 1.0]  # block 0 0: -2 becomes -448, and 1 becomes 224
    w[2, 4] = 0.5  # the ragged corner
    q, scale_inv = fp8.quantize(w, (2, 4))
    np.testing.assert_array_equal(scale_inv, np.float32([[2 / 448, 1], [1, 0.5 / 448]]))
    expected = np.zeros((3, 5))
    expected[0, :2], expected[2, 4] = [-448, 224], 448
    np.testing.assert_array_equal(q.astype(np.float64), expected)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_quantize_as_torch_does(dtype):
    w, block = (0.02 * RANDOM.standard_normal((2, 70, 40))).astype(dtype), (32, 16)
    q, scale_inv = fp8.quantize(w, block)
    for e in range(2):
        for i in range(3):
            for j in range(3):
                part = np.s_[e, 32 * i : 32 * i + 32, 16 * j : 16 * j + 16]
                values = torch.from_numpy(w[part].astype(np.float32))
                factor = values.abs().max() / 448
                assert scale_inv[e, i, j] == factor
                theirs = (values / factor).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
                np.testing.assert_array_equal(q[part].view(np.uint8), theirs)
    error = np.abs(fp8.dequantize(q, scale_inv, block) - w.astype(np.float32))
    assert error.max() <= 2**-4 * np.abs(w.astype(np.float32)).max()  # 3 bits of fraction, rounded
