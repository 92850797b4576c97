"""Does compositing give what rays see, and the gradients of it?"""

import inspect
import math
import sys
from typing import Any

import pytest
import torch
from helpers.packed_rays import SIZES, generator, packed_samples, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfield.fields.errors import ConfigError, ShapeError
from polyfield.fields.ops import composite as module
from polyfield.fields.ops.activations import DENSITY_ACTIVATIONS, density_derivative, density_from_raw
from polyfield.fields.ops.composite import composite, composite_reference

DIFFERENTIABLE = ("density_raw", "rgb", "background")


def slab(density, length, count, dtype=torch.float64):
    """One ray through constant density from t = 1 on, white samples."""
    delta = torch.full((count,), length / count, dtype=dtype)
    t = 1 + (torch.arange(count, dtype=dtype) + 0.5) * length / count
    raw = torch.full((count,), math.log(density), dtype=dtype)
    return raw, torch.ones(count, 3, dtype=dtype), t, delta, torch.tensor([0, count]).int()


def leaves(samples, dtype) -> dict[str, Any]:
    out = {k: v if k == "offsets" else v.to(dtype) for k, v in samples.items()}
    for name in DIFFERENTIABLE:
        out[name] = out[name].detach().clone().requires_grad_()
    return out


def changed(samples, **changes) -> dict[str, Any]:
    return {**samples, **changes}


def loss_of(out, seed=1) -> Any:
    g = generator(seed)
    parts = (out.rgb, out.alpha, out.depth, out.weights)
    return sum((torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype) * p).sum() for p in parts)


@pytest.mark.parametrize("activation", DENSITY_ACTIVATIONS)
@pytest.mark.parametrize("rays", SIZES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-11)])
def test_native_equals_float64_reference(activation, rays, dtype, bound):
    samples = packed_samples(rays, seed=rays)
    native, exact = leaves(samples, dtype), leaves(samples, torch.float64)
    out = composite(**native, activation=activation)
    expected = composite_reference(**exact, activation=activation)
    for name, value, wanted in zip(out._fields, out, expected, strict=True):
        finite = torch.isfinite(wanted)
        assert torch.equal(torch.isfinite(value), finite), name
        assert relative_error(value[finite], wanted[finite]) < bound, name
    grads = torch.autograd.grad(loss_of(out), [native[k] for k in DIFFERENTIABLE])
    wanted = torch.autograd.grad(loss_of(expected), [exact[k] for k in DIFFERENTIABLE])
    for name, value, expected_grad in zip(DIFFERENTIABLE, grads, wanted, strict=True):
        assert relative_error(value, expected_grad) < bound, name


@pytest.mark.parametrize("rays", [0, 3, 50])
def test_written_backward_of_the_reference_is_autograd_of_the_reference(rays):
    samples = leaves(packed_samples(rays, torch.float64), torch.float64)
    out = composite_reference(**samples)
    wanted = torch.autograd.grad(loss_of(out), [samples[k] for k in DIFFERENTIABLE])
    g = generator(1)
    cotangents = [
        torch.randn(p.shape, generator=g, dtype=torch.float64) for p in (out.rgb, out.alpha, out.depth, out.weights)
    ]
    plain = [v.detach() for v in samples.values()]
    written = module._composite_backward_reference(*[*plain, *cotangents, 0, -math.log(1e-4)])
    for value, expected in zip(written, wanted, strict=True):
        assert relative_error(value, expected) < 1e-12


@pytest.mark.parametrize("count", [1, 7, 64])
def test_constant_slab_has_opacity_one_minus_exp_of_thickness(count):
    for density, length in ((0.3, 2.0), (2.0, 1.5), (1e-6, 1e-3)):
        out = composite(*slab(density, length, count), None, threshold=0.0)
        assert float(out.alpha) == pytest.approx(-math.expm1(-density * length), rel=1e-12)


def test_thin_slab_keeps_its_opacity_in_float32():
    out = composite(*slab(1e-4, 1e-3, 8, torch.float32), None)
    assert float(out.alpha) == pytest.approx(1e-7, rel=1e-5)


@pytest.mark.parametrize("count", [1, 10, 37])
def test_median_of_a_slab_is_where_half_is_absorbed(count):
    out = composite(*slab(1.5, 4.0, count), None)
    assert float(out.median_depth) == pytest.approx(1 + math.log(2) / 1.5, rel=1e-9)
    assert float(composite(*slab(0.1, 4.0, count), None).median_depth) == math.inf


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from(sorted(DENSITY_ACTIVATIONS)), st.sampled_from([0.0, 1e-4, 0.3]))
def test_white_furnace_stays_white_and_weights_are_a_share(seed, activation, threshold):
    samples = packed_samples(20, torch.float64, seed)
    samples["rgb"], samples["background"] = torch.ones_like(samples["rgb"]), torch.ones_like(samples["background"])
    out = composite(**changed(samples), activation=activation, threshold=threshold)
    torch.testing.assert_close(out.rgb, torch.ones_like(out.rgb), rtol=0, atol=1e-12)
    assert bool((out.weights >= 0).all())
    assert bool((out.alpha <= 1 + 1e-12).all())
    per_ray = torch.zeros(20, dtype=torch.float64)
    counts = (samples["offsets"][1:] - samples["offsets"][:-1]).long()
    per_ray.index_add_(0, torch.repeat_interleave(torch.arange(20), counts), out.weights)
    torch.testing.assert_close(per_ray, out.alpha, rtol=1e-12, atol=1e-12)


def test_rays_stop_after_the_sample_that_crosses_the_threshold():
    raw, rgb, t, delta, offsets = slab(10.0, 1.0, 10)
    raw.requires_grad_()
    out = composite(raw, rgb, t, delta, offsets, None, threshold=math.exp(-3.5))  # one optical unit a sample
    assert (out.weights > 0).tolist() == [True] * 4 + [False] * 6
    (grad,) = torch.autograd.grad(out.alpha.sum(), raw)
    assert (grad != 0).tolist() == [True] * 4 + [False] * 6


def test_a_ray_without_samples_shows_its_background():
    background = torch.tensor([[0.1, 0.5, 0.9]])
    empty = torch.zeros(0)
    out = composite(empty, torch.zeros(0, 3), empty, empty, torch.tensor([0, 0]).int(), background)
    assert torch.equal(out.rgb, background)
    assert out.alpha.tolist() == out.depth.tolist() == [0.0]


def test_rows_of_no_ray_have_no_weight_and_no_gradient():
    samples = leaves(packed_samples(9, seed=2), torch.float32)
    n = samples["density_raw"].shape[0]
    samples["offsets"] = torch.tensor([5, 9, 9, n - 7]).int()
    samples["background"] = None
    out = composite(**samples)
    grads = torch.autograd.grad(out.rgb.sum(), [samples["density_raw"], samples["rgb"]])
    for values in (out.weights, *grads):
        assert not bool(values[:5].any() or values[n - 7 :].any())
        assert bool(values[5:9].any())
    assert float(out.alpha.detach()[1]) == 0


@pytest.mark.parametrize("activation", DENSITY_ACTIVATIONS)
def test_gradcheck(activation):
    s = packed_samples(5, torch.float64, seed=3, longest=6)
    s["density_raw"] += 0.05 * s["density_raw"].sign()  # away from the kink of relu

    def run(raw, rgb, background):
        given = {**s, "density_raw": raw, "rgb": rgb, "background": background}
        out = composite(**given, activation=activation, threshold=0.0)
        return out.rgb, out.alpha, out.depth, out.weights

    assert torch.autograd.gradcheck(run, [s[k].clone().requires_grad_() for k in DIFFERENTIABLE])


def test_single_cotangents_give_the_gradient_of_their_output_alone():
    samples = packed_samples(9, torch.float64)
    for name in ("rgb", "alpha", "depth", "weights"):
        native, exact = leaves(samples, torch.float64), leaves(samples, torch.float64)
        getattr(composite(**native), name).sum().backward()
        getattr(composite_reference(**exact), name).sum().backward()
        assert relative_error(native["density_raw"].grad, exact["density_raw"].grad) < 1e-12, name


def test_median_and_sample_places_have_no_gradient():
    samples = leaves(packed_samples(4), torch.float32)
    samples["distances"].requires_grad_()
    out = composite(**samples)
    assert not out.median_depth.requires_grad
    (grad,) = torch.autograd.grad(out.depth.sum(), samples["distances"], allow_unused=True)
    assert grad is None


def test_derivative_of_exp_is_clamped_and_its_value_is_not():
    raw = torch.tensor([-20.0, 0.0, 20.0], dtype=torch.float64, requires_grad=True)
    value = density_from_raw(raw, "exp")
    assert torch.equal(value, raw.exp())
    (grad,) = torch.autograd.grad(value.sum(), raw)
    assert torch.equal(grad, torch.tensor([-15.0, 0.0, 15.0], dtype=torch.float64).exp())
    assert torch.equal(density_derivative(raw.detach(), "exp"), grad)
    thin = torch.tensor([-20.0], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, dtype=torch.float64)
    out = composite(thin, one[:, None].expand(1, 3), one, one, torch.tensor([0, 1]).int(), None)
    (grad,) = torch.autograd.grad(out.alpha.sum(), thin)
    assert float(grad) == pytest.approx(math.exp(-15), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("run", [composite, composite_reference])
def test_bad_density_stays_in_its_ray(dtype, bad, run):
    samples = leaves(packed_samples(6, seed=5, longest=9), dtype)
    offsets = samples["offsets"]
    row = int(offsets[2])
    assert int(offsets[3]) > row
    clean = run(**samples)
    samples["density_raw"] = samples["density_raw"].detach().clone()
    samples["density_raw"][row] = bad
    samples["density_raw"].requires_grad_()
    out = run(**samples)
    others = torch.arange(6) != 2
    assert torch.equal(out.rgb[others], clean.rgb[others])
    if bad > 0:
        assert float(out.alpha.detach()[2]) == 1.0
    if not math.isnan(bad):
        assert bool(torch.isfinite(out.rgb).all())
    (grad,) = torch.autograd.grad(out.rgb.sum(), samples["density_raw"])
    outside = torch.ones_like(grad, dtype=torch.bool)
    outside[int(offsets[2]) : int(offsets[3])] = False
    assert bool(torch.isfinite(grad[outside]).all())


def test_results_do_not_depend_on_the_thread_count():
    samples = leaves(packed_samples(500), torch.float32)
    threads = torch.get_num_threads()
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        out = composite(**samples)
        found.append([*out, *torch.autograd.grad(loss_of(out), [samples[k] for k in DIFFERENTIABLE])])
    torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_operator_is_registered_and_traces():
    samples = leaves(packed_samples(4), torch.float32)
    arguments = (*samples.values(), 0, 9.0)
    torch.library.opcheck(torch.ops.polyfield.composite.default, arguments)
    torch.library.opcheck(torch.ops.polyfield.composite.default, (*arguments[:5], None, 1, math.inf))
    plain = [v.detach() for v in samples.values()]
    rays = plain[4].shape[0] - 1
    cotangents = (torch.rand(rays, 3), torch.rand(rays), None, None)
    torch.library.opcheck(torch.ops.polyfield.composite_backward.default, (*plain, *cotangents, 0, 9.0))
    compiled = torch.compile(composite, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**samples).rgb, composite(**samples).rgb)


def test_errors_name_what_is_wrong():
    samples = packed_samples(4)
    with pytest.raises(ConfigError, match="density activation must be one of exp, softplus, relu; got 'elu'"):
        composite(**changed(samples, activation="elu"))
    with pytest.raises(ConfigError, match=r"threshold must be a transmittance in \[0, 1\).*got 1"):
        composite(**changed(samples, threshold=1.0))
    with pytest.raises(ShapeError, match=r"rgb must be \(\d+, 3\) torch.float32, as the other samples; got"):
        composite(**changed(samples, rgb=samples["rgb"][:, :2]))
    with pytest.raises(ShapeError, match=r"background must be \(4, 3\) torch.float32 or None"):
        composite(**changed(samples, background=samples["background"][:2]))
    with pytest.raises(ShapeError, match=r"density_raw must be \(N,\) float32 or float64; got .* torch.float16"):
        composite(**changed(samples, density_raw=samples["density_raw"].half()))


@pytest.mark.usefixtures("reports_values")
def test_errors_name_which_offsets_are_wrong():
    samples = packed_samples(4)
    with pytest.raises(ShapeError, match="offsets must ascend"):
        composite(**changed(samples, offsets=samples["offsets"].flip(0)))


# --- other back ends


@pytest.mark.parametrize("activation", DENSITY_ACTIVATIONS)
@pytest.mark.parametrize("background", [True, False])
def test_nerfacc_is_given_what_its_functions_ask_for(monkeypatch, activation, background):
    """Its sum over packed rays exists on CUDA only: one written in torch, called by its signature, stands in for it."""
    nerfacc = pytest.importorskip("nerfacc", reason="nerfacc, of the extra 'test', is not installed")
    signature = inspect.signature(nerfacc.render_weight_from_density)

    def render_weight_from_density(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        assert set(given) == {"t_starts", "t_ends", "sigmas", "ray_indices", "n_rays"}
        optical, ids = given["sigmas"] * (given["t_ends"] - given["t_starts"]), given["ray_indices"]
        earlier = torch.ones(len(ids), len(ids), dtype=torch.bool).tril(-1) & (ids[:, None] == ids)
        transmittance = torch.exp(-(earlier * optical).sum(1))
        alphas = 1 - torch.exp(-optical)
        return transmittance * alphas, transmittance, alphas

    monkeypatch.setattr(nerfacc, "render_weight_from_density", render_weight_from_density)
    samples = packed_samples(40, torch.float64)
    if not background:
        samples = changed(samples, background=None)
    names = [name for name in DIFFERENTIABLE if samples[name] is not None]
    results = []
    for backend in ("nerfacc", "polyfield"):
        given = {**samples, **{name: samples[name].clone().requires_grad_() for name in names}}
        out = composite(**given, activation=activation, threshold=1e-2, backend=backend)
        results.append((out, torch.autograd.grad(loss_of(out), [given[name] for name in names])))
    for mine, theirs in zip(results[0][0] + results[0][1], results[1][0] + results[1][1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10)


def test_a_back_end_that_is_not_there_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match="backend must be 'polyfield' or 'nerfacc'; got 'cuda'"):
        composite(**changed(packed_samples(2), backend="cuda"))
    monkeypatch.setitem(sys.modules, "nerfacc", None)
    with pytest.raises(ConfigError, match=r"backend 'nerfacc' is not installed .*; run 'pip install nerfacc'"):
        composite(**changed(packed_samples(2), backend="nerfacc"))
