"""Spherical harmonics: against the reference, against their defining integrals, and in 3DGS's order and signs."""

import math

import pytest
import torch
from helpers.native_levels import SIZES, TOLERANCE, on_reference, threads, uniform

from polyfield.fields.errors import ConfigError, ShapeError
from polyfield.fields.ops.spherical_harmonics import spherical_harmonics, spherical_harmonics_reference


def directions_of(n: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    x = uniform(n, 3, seed=seed, low=-1) + 1e-3
    return (x / x.norm(dim=1, keepdim=True)).to(dtype)


def sphere_quadrature(n: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions and weights that integrate polynomials of degree below 2 n over the sphere exactly: evenly spaced
    azimuths, and Gauss-Legendre nodes in z (eigenvalues of the Jacobi matrix)."""
    k = torch.arange(1, n, dtype=torch.float64)
    off = k / (4 * k * k - 1).sqrt()
    z, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    weight_z = 2 * vectors[0] ** 2
    azimuth = torch.arange(2 * n, dtype=torch.float64) * math.pi / n
    r = (1 - z * z).sqrt()
    points = torch.stack(
        [r[:, None] * azimuth.cos(), r[:, None] * azimuth.sin(), z[:, None].expand(-1, 2 * n)], -1
    ).reshape(-1, 3)
    return points, (weight_z[:, None] * (math.pi / n)).expand(-1, 2 * n).reshape(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("degree", [1, 2, 3, 4])
@pytest.mark.parametrize("n", SIZES)
def test_values_and_gradients_equal_the_reference(n, degree, dtype):
    directions = directions_of(n, dtype, seed=n).requires_grad_()
    ours, reference = spherical_harmonics(directions, degree), spherical_harmonics_reference(directions, degree)
    torch.testing.assert_close(ours, reference, **TOLERANCE[dtype])
    cotangent = uniform(n, degree * degree, seed=3, dtype=dtype, low=-1)
    (mine,), (theirs,) = (torch.autograd.grad(y, directions, cotangent) for y in (ours, reference))
    torch.testing.assert_close(mine, theirs, rtol=TOLERANCE[dtype]["rtol"], atol=10 * TOLERANCE[dtype]["atol"])


def test_operators_answer_without_the_native_library():
    directions = directions_of(20).requires_grad_()
    for degree in (1, 2, 3, 4):
        (mine,) = torch.autograd.grad(spherical_harmonics(directions, degree).square().sum(), directions)
        with on_reference():
            (theirs,) = torch.autograd.grad(spherical_harmonics(directions, degree).square().sum(), directions)
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_gradcheck(degree):
    directions = directions_of(4).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: spherical_harmonics(d, degree), (directions,))


def test_opcheck():
    directions = directions_of(5).requires_grad_()
    torch.library.opcheck(torch.ops.polyfield.spherical_harmonics.default, (directions, 4))
    grad = torch.ones(5, 16, dtype=torch.float64)
    torch.library.opcheck(torch.ops.polyfield.spherical_harmonics_backward.default, (grad, directions.detach(), 4))


def test_compiles_into_one_graph():
    directions = directions_of(5)
    compiled = torch.compile(lambda d: spherical_harmonics(d, 3) * 2, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(directions), spherical_harmonics(directions, 3) * 2)


def test_basis_is_orthonormal():
    points, weights = sphere_quadrature()
    basis = spherical_harmonics(points, 4)
    gram = (basis * weights[:, None]).T @ basis
    torch.testing.assert_close(gram, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-12)


def test_lower_degrees_are_prefixes():
    directions = directions_of(10)
    for degree in (1, 2, 3):
        prefix = spherical_harmonics(directions)[:, : degree**2]
        torch.testing.assert_close(spherical_harmonics(directions, degree), prefix, rtol=1e-14, atol=1e-15)


def test_order_and_signs_are_those_of_3dgs():
    x, y, z = (row for row in spherical_harmonics(torch.eye(3, dtype=torch.float64)))
    c = math.sqrt(3 / (4 * math.pi))
    torch.testing.assert_close(x[1:4], torch.tensor([0, 0, -c], dtype=torch.float64))
    torch.testing.assert_close(y[1:4], torch.tensor([-c, 0, 0], dtype=torch.float64))
    torch.testing.assert_close(z[1:4], torch.tensor([0, c, 0], dtype=torch.float64))
    assert x[8] > 0 > y[8]
    assert x[15] < 0
    assert y[9] > 0
    assert z[12] > 0


def test_bands_have_the_parity_of_their_number():
    directions = directions_of(10)
    sign = torch.tensor([1.0] + [-1.0] * 3 + [1.0] * 5 + [-1.0] * 7, dtype=torch.float64)
    torch.testing.assert_close(spherical_harmonics(-directions), spherical_harmonics(directions) * sign)


def test_energy_of_a_band_is_the_same_in_all_directions():
    basis = spherical_harmonics(directions_of(50))
    for band in range(4):
        energy = basis[:, band**2 : (band + 1) ** 2].square().sum(1)  # Unsoeld's theorem
        torch.testing.assert_close(energy, torch.full_like(energy, (2 * band + 1) / (4 * math.pi)))


def test_nan_stays_in_its_row():
    directions = directions_of(3)
    directions[1] = math.nan
    basis = spherical_harmonics(directions)
    assert basis[[0, 2]].isfinite().all()
    assert basis[1, 1:].isnan().all()


def test_results_are_bit_equal_on_one_and_two_threads():
    directions = directions_of(10000, torch.float32)
    with threads(1):
        one = spherical_harmonics(directions)
    with threads(2):
        assert torch.equal(one, spherical_harmonics(directions))


def test_error_texts():
    with pytest.raises(ShapeError, match=r"directions must be \(N, 3\) unit vectors; got \(3,\)"):
        spherical_harmonics(torch.zeros(3))
    with pytest.raises(ShapeError, match=r"must be float32 or float64; got torch.int64"):
        spherical_harmonics(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"must be 1, 2, 3 or 4; got 5"):
        spherical_harmonics(torch.zeros(2, 3), 5)
