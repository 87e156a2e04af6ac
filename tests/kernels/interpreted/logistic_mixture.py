"""Laws of the logistic mixture's Triton kernels, under the interpreter (see test_interpreter.py).

Shapes are small: the interpreter takes some 50 ms for a program.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dsmooth.kernels.launch import INTERPRETED
from tests.functional.test_logistic_mixture import (  # noqa: F401 - invariants of every implementation
    test_as_exact_as_eager,
    test_extremes,
    test_gradient_of_a_weighted_sum,
    test_nan_is_never_hidden,
    test_what_all_logits_share_changes_nothing,
)
from tests.functional.test_ops import (  # noqa: F401 - invariants of every implementation
    test_a_gradient_does_not_depend_on_which_others_are_wanted,
    test_a_graph_that_is_kept_gives_its_gradient_again,
    test_a_second_derivative_is_refused,
    test_compiles_without_a_break,
    test_no_access_is_out_of_bounds,
    test_opcheck,
    test_strides_do_not_matter,
)
from tests.helpers.mixture_cases import (
    MIXTURES,
    RUNS,
    assert_as_exact_as_eager,
    each_likelihood,
    random_case,
)

assert INTERPRETED, "run with TRITON_INTERPRET=1"

pytestmark = pytest.mark.grid
run = RUNS["triton"]


@each_likelihood
def test_inputs_of_two_dtypes(likelihood: Any) -> None:
    x, params = (t.float() for t in random_case(3, likelihood, size=(1, 2, 3)))
    got = run(x, params.bfloat16(), likelihood)
    assert [g.dtype for g in got] == [torch.float32, torch.float32, torch.bfloat16]
    assert_as_exact_as_eager(got, x, params.bfloat16(), likelihood)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for g, w in zip(run(x, params.bfloat16(), likelihood), got, strict=True):
            assert torch.equal(g, w)


def test_an_atom_far_above_the_components_neither_overflows_nor_vanishes() -> None:
    x, params = (t.float() for t in random_case(1, "atoms", size=(1, 1, 2)))
    x[..., 0], x[..., 1] = 1.0, 0.5
    params[:, [4, 4 + 255]] = 1e4  # bytes 0 and 255
    got = run(x, params, "atoms")
    assert got[0][0, 0, 0].item() == pytest.approx(-math.log(2), rel=1e-6)
    assert_as_exact_as_eager(got, x, params, **MIXTURES["atoms"])
