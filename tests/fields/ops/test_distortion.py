"""Is the O(N) distortion loss that of mip-NeRF 360, and its gradient right?"""

import pytest
import torch
from helpers.packed_rays import SIZES, packed_samples, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfield.fields.errors import ShapeError
from polyfield.fields.ops.distortion import _backward_reference, distortion_loss, distortion_loss_reference


def samples(rays, dtype=torch.float32, seed=0):
    s = packed_samples(rays, dtype, seed)
    return s["density_raw"].sigmoid(), s["distances"], s["deltas"], s["offsets"]


@pytest.mark.parametrize("rays", SIZES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_native_equals_reference(rays, dtype, bound):
    w, t, delta, offsets = samples(rays, dtype)
    w.requires_grad_()
    exact = [v.detach().double() for v in (w, t, delta)]
    exact[0].requires_grad_()
    loss, expected = distortion_loss(w, t, delta, offsets), distortion_loss_reference(*[*exact, offsets])
    assert relative_error(loss, expected) < bound
    scale = torch.linspace(0.5, 2, rays)
    (grad,) = torch.autograd.grad((loss * scale.to(dtype)).sum(), w)
    (expected_grad,) = torch.autograd.grad((expected * scale.double()).sum(), exact[0])
    assert relative_error(grad, expected_grad) < bound
    written = _backward_reference(*[scale.double(), exact[0].detach(), *exact[1:], offsets])
    assert relative_error(written, expected_grad) < 1e-12


def test_one_interval_costs_a_third_of_its_width():
    loss = distortion_loss(torch.ones(1), torch.tensor([2.0]), torch.tensor([0.3]), torch.tensor([0, 1]).int())
    assert float(loss) == pytest.approx(0.1)


def test_two_thin_halves_cost_half_their_distance():
    w, t = torch.tensor([0.5, 0.5]), torch.tensor([1.0, 3.0])
    assert float(distortion_loss(w, t, torch.zeros(2), torch.tensor([0, 2]).int())) == pytest.approx(1.0)


def test_gradcheck():
    w, t, delta, offsets = samples(6, torch.float64)
    assert torch.autograd.gradcheck(lambda v: distortion_loss(v, t, delta, offsets), w.requires_grad_())


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.floats(-2, 2))
def test_loss_is_not_negative_and_ignores_where_along_the_ray(seed, shift):
    w, t, delta, offsets = samples(20, torch.float64, seed)
    loss = distortion_loss(w, t, delta, offsets)
    assert bool((loss >= 0).all())
    torch.testing.assert_close(distortion_loss(w, t + shift, delta, offsets), loss, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(distortion_loss(2 * w, t, delta, offsets), 4 * loss, rtol=1e-9, atol=1e-9)


def test_rows_of_no_ray_count_for_nothing():
    w, t, delta, _ = samples(8)
    offsets = torch.tensor([3, 9, 9, 20]).int()
    w = w.requires_grad_()
    loss = distortion_loss(w, t, delta, offsets)
    (grad,) = torch.autograd.grad(loss.sum(), w)
    assert float(loss.detach()[1]) == 0
    assert not bool(grad[:3].any() or grad[20:].any())


def test_nan_stays_in_its_ray():
    w, t, delta, _ = samples(8)
    w[4] = float("nan")
    loss = distortion_loss(w, t, delta, torch.tensor([0, 3, 6, 9]).int())
    assert torch.isnan(loss).tolist() == [False, True, False]
    assert torch.equal(
        torch.isnan(distortion_loss_reference(w, t, delta, torch.tensor([0, 3, 6, 9]).int())), torch.isnan(loss)
    )


def test_operator_is_registered_and_traces():
    w, t, delta, offsets = samples(5)
    torch.library.opcheck(torch.ops.polyfield.distortion_loss.default, (w.requires_grad_(), t, delta, offsets))
    gradient = (torch.ones(5), w.detach(), t, delta, offsets)
    torch.library.opcheck(torch.ops.polyfield.distortion_loss_backward.default, gradient)
    compiled = torch.compile(distortion_loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(w, t, delta, offsets), distortion_loss(w, t, delta, offsets))


def test_errors_name_shapes_and_offsets():
    w, t, delta, offsets = samples(5)
    with pytest.raises(ShapeError, match=r"distances must be .* as the other samples; got"):
        distortion_loss(w, t[:-1], delta, offsets)
    with pytest.raises(ShapeError, match=r"offsets must be \(R \+ 1,\) int32; got"):
        distortion_loss(w, t, delta, offsets.long())


@pytest.mark.usefixtures("reports_values")
def test_errors_name_which_offsets_are_wrong():
    w, t, delta, _ = samples(5)
    for bad in ([0, 5, 3, 9], [-1, 2], [0, len(w) + 1]):
        with pytest.raises(ShapeError, match="offsets must ascend from at least 0 to at most the number of samples"):
            distortion_loss(w, t, delta, torch.tensor(bad).int())
        with pytest.raises(ShapeError, match="offsets must ascend"):
            distortion_loss_reference(w, t, delta, torch.tensor(bad).int())
