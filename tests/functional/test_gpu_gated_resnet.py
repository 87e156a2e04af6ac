"""The gated block's Triton kernels on a CUDA device, against float64 on the CPU."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.gated_cases import EPS, KERNELS, STRIDES, assert_as_good, make_case

pytestmark = pytest.mark.gpu
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [
    ((1, 1, 1), 1, ()),
    ((3, 5, 7), 5, (5, 3)),
    ((2, 28, 28), 40, (40,)),
    ((2, 8, 33), 160, (160, 160)),
]


def eps_of(dtype: torch.dtype) -> float:
    """The rounding of products, which for float32 may be TF32's."""
    tf32 = torch.backends.cudnn.conv.fp32_precision == "tf32"
    return 2.0**-11 if dtype == torch.float32 and tf32 else EPS[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("size", "filters", "skips"), SIZES)
@pytest.mark.parametrize("shift", list(KERNELS))
def test_as_good_as_eager(shift, size, filters, skips, dtype) -> None:
    case = make_case(shift, size, filters, skips, 0.5, dtype, gains=True)
    exact = case.run("reference", torch.float64)
    # Both in the same precision: torch's convolutions round to TF32 where the kernels do.
    eager = case.run("reference", dtype, device="cuda")
    for name, prepare in STRIDES.items():
        got = case.run("triton", dtype, prepare, device="cuda")
        assert_as_good(got, eager, exact, eps_of(dtype))
        again = case.run("auto", dtype, prepare, device="cuda")
        for key, value in got.items():
            assert torch.equal(again[key], value), (name, key)


def test_tf32_where_torch_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 is used where torch's own convolutions may use it, and as exactly."""
    case = make_case("down", (2, 16, 16), 64, (64,), 0.0, torch.float32)
    exact = case.run("reference", torch.float64)
    errors = []
    for precision in ("ieee", "tf32"):
        monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", precision)
        got = case.run("triton", torch.float32, device="cuda")
        eager = case.run("reference", torch.float32, device="cuda")
        assert_as_good(got, eager, exact, 2.0**-23 if precision == "ieee" else 2.0**-11)
        errors.append((got["y"].double() - exact["y"]).abs().max().item())
    assert errors[0] < 1e-5 < errors[1] < 1e-2
