"""What the module of planes and lines adds to its operator: total variation."""

from __future__ import annotations

import pytest
import torch

from polyfield.fields.encodings.factored_grid import FactoredGridEncoding
from polyfield.fields.ops.factored_encode import FactoredGridSpec, Term


@pytest.mark.parametrize("factors", [("xy", "xz", "yz"), ("xy", "z"), ("y",)], ids="*".join)
def test_variation_gradient_is_that_of_mean_squared_differences(factors):
    coarse, fine = (Term(factors=factors, channels=3, resolution=size) for size in ((4, 5, 6), (7, 9, 8)))
    encoding = FactoredGridEncoding(FactoredGridSpec(terms=(coarse, fine)), torch.Generator().manual_seed(0), -1, 1)
    table = encoding.table.detach().double().flatten().requires_grad_()
    total = table.new_zeros(())
    for factor in encoding.spec.factors():
        texels = table[factor.first :][: torch.Size(factor.shape).numel()].view(factor.shape)
        total = total + sum(texels.diff(dim=axis).square().sum() for axis in (0, 1)) / texels.numel()
    (expected,) = torch.autograd.grad(0.3 * total, table)
    encoding.table.grad = torch.ones_like(encoding.table)
    encoding.add_variation_gradient_(0.3)
    torch.testing.assert_close(encoding.table.grad.flatten() - 1, expected.float(), atol=1e-6, rtol=1e-5)
