"""The fused step equals the composed operators: loss, gradients and update, for every variant it offers."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch

from polyfield.fields.errors import ConfigError, NativeError, ShapeError
from polyfield.fields.ops import radiance_step as module
from polyfield.fields.ops.adam import lazy_adam_
from polyfield.fields.ops.fused_mlp import MlpSpec, initial_parameters
from polyfield.fields.ops.hash_encode import HashGridSpec, hash_encode
from polyfield.fields.ops.radiance_step import (
    AdamRates,
    RadianceBatch,
    RadianceParameters,
    RadianceSpec,
    native_available,
    radiance_gradients,
    radiance_reference,
    radiance_step_,
)

needs_native = pytest.mark.skipif(not native_available(), reason="the native library is not loaded")
GRID = HashGridSpec(levels=4, channels=2, base_resolution=4, finest_resolution=64, log2_table_size=10)


FORMS = ["operators"] if os.environ.get("POLYFIELD_CUDA_DRIVER") else ["kernel", "operators"]


@pytest.fixture(autouse=True, params=FORMS)
def form(request, monkeypatch):
    """Both forms of the step: the CPU's one kernel, and the operators one by one, as on CUDA."""
    if request.param == "operators":
        monkeypatch.setattr(module, "_in_one_kernel", lambda parameters: False)


def make_spec(**changes) -> RadianceSpec:
    grid = changes.pop("grid", GRID)
    hidden = changes.pop("hidden", "relu")
    width, layers, bands = changes.pop("width", 64), changes.pop("layers", 2), changes.get("sh_bands", 4)
    density = MlpSpec(inputs=grid.features, outputs=16, width=width, hidden_layers=1, hidden_activation=hidden)
    color = MlpSpec(
        inputs=15 + bands**2,
        outputs=3,
        width=width,
        hidden_layers=layers,
        hidden_activation=hidden,
        output_activation="sigmoid",
    )
    return RadianceSpec(grid=grid, density=density, color=color, **changes)


def make_parameters(spec: RadianceSpec, seed: int = 0) -> RadianceParameters:
    g = torch.Generator().manual_seed(seed)
    table = torch.rand(spec.grid.entries, spec.grid.channels, generator=g) - 0.5
    return RadianceParameters(table, initial_parameters(spec.density, g), initial_parameters(spec.color, g))


def make_batch(rays: int, mean_samples: int, seed: int = 0) -> RadianceBatch:
    g = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 2 * mean_samples + 1, (rays,), generator=g)
    offsets = torch.cat([torch.zeros(1), counts.cumsum(0)]).int()
    n = int(offsets[-1])
    directions = torch.nn.functional.normalize(torch.randn(rays, 3, generator=g), dim=1)
    return RadianceBatch(
        torch.rand(n, 3, generator=g),
        torch.rand(n, generator=g) * 0.1 + 0.01,
        offsets,
        directions,
        torch.rand(rays, 3, generator=g),
        torch.rand(rays, 3, generator=g),
    )


def as_double(batch: RadianceBatch) -> RadianceBatch:
    return batch._replace(
        **{k: t.double() for k, t in batch._asdict().items() if t is not None and t.is_floating_point()}
    )


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))


def assert_matches(batch, parameters, spec, precision, limit):
    out, gradients = radiance_gradients(batch, parameters, spec, precision=precision)
    double = RadianceParameters(*(p.double() for p in parameters))
    expected, expected_gradients = radiance_reference(as_double(batch), double, spec)
    assert out.finite
    assert abs(out.loss - expected.loss) <= limit * abs(expected.loss)
    assert relative(out.rgb, expected.rgb) < limit
    for name, got, want in zip(gradients._fields, gradients, expected_gradients, strict=True):
        assert relative(got, want) < limit, name


@needs_native
@pytest.mark.parametrize("rays", [1, 31, 32, 33, 300])
def test_fp32_gradients_match_float64_autograd(rays):
    spec = make_spec()
    assert_matches(make_batch(rays, 20), make_parameters(spec), spec, "fp32", 1e-5)


@needs_native
def test_bf16_gradients_stay_within_three_percent():
    spec = make_spec()
    assert_matches(make_batch(200, 20), make_parameters(spec), spec, "bf16", 3e-2)


@needs_native
@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "huber"},
        {"density_activation": "softplus"},
        {"density_activation": "relu"},
        {"sh_bands": 2},
        {"sh_bands": 1, "width": 16, "layers": 1},
        {"width": 128, "layers": 4},
        {"width": 256, "layers": 5},
        {"hidden": "softplus", "width": 32},
        {"grid": HashGridSpec(levels=5, channels=4, base_resolution=4, finest_resolution=64, log2_table_size=8)},
        {"grid": HashGridSpec(levels=3, channels=1, base_resolution=4, finest_resolution=32, log2_table_size=8)},
        {"grid": HashGridSpec(levels=2, channels=8, base_resolution=4, finest_resolution=32, log2_table_size=8)},
    ],
    ids=lambda c: "-".join(c),
)
def test_variants_match_the_reference(changes):
    spec = make_spec(**changes)
    assert_matches(make_batch(60, 15), make_parameters(spec), spec, "fp32", 2e-5)


@needs_native
def test_indexed_samples_and_given_features_change_nothing():
    spec = make_spec()
    parameters, plain = make_parameters(spec), make_batch(50, 20)
    n = plain.positions.shape[0]
    order = torch.randperm(n + 40, generator=torch.Generator().manual_seed(3))[:n]
    positions, deltas = torch.rand(n + 40, 3), torch.rand(n + 40)
    positions[order], deltas[order] = plain.positions, plain.deltas
    shuffled = plain._replace(positions=positions, deltas=deltas, rows=order.int())
    cached = shuffled._replace(features=hash_encode(positions, parameters.table, spec.grid))
    out, gradients = radiance_gradients(plain, parameters, spec)
    for batch in (shuffled, cached):
        other, other_gradients = radiance_gradients(batch, parameters, spec)
        assert other.loss == out.loss
        assert all(torch.equal(a, b) for a, b in zip(gradients, other_gradients, strict=True))


@needs_native
def test_update_equals_gradients_followed_by_lazy_adam():
    spec, rates = make_spec(), AdamRates(1e-2, 2e-3)
    batch = make_batch(50, 20)
    fused, composed = make_parameters(spec), make_parameters(spec)
    moments = [[RadianceParameters(*(torch.zeros_like(p) for p in fused)) for _ in range(2)] for _ in range(2)]
    for step in (1, 2, 3):
        radiance_step_(batch, fused, moments[0][0], moments[0][1], spec, rates, step=step)
        _, gradients = radiance_gradients(batch, composed, spec)
        for k in range(3):
            lr = rates.table_lr if k == 0 else rates.network_lr
            lazy_adam_(
                composed[k], gradients[k], moments[1][0][k], moments[1][1][k], step=step, lr=lr, skip_untouched=k == 0
            )
    for a, b in zip(fused, composed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@needs_native
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_the_rounded_table_follows_the_table(channels):
    grid = HashGridSpec(levels=4, channels=channels, base_resolution=4, finest_resolution=64, log2_table_size=10)
    spec = make_spec(grid=grid)
    parameters, batch = make_parameters(spec), make_batch(40, 8)
    parameters.table[::5] *= 1e-6
    rounded = parameters.table.half()
    before = rounded.clone()
    m, v = (RadianceParameters(*(torch.zeros_like(p) for p in parameters)) for _ in range(2))
    versions = [p._version for p in parameters]
    for step in (1, 2, 3):
        radiance_step_(
            batch, parameters, m, v, spec, AdamRates(1e-2, 1e-2), step=step, precision="bf16", table_rounded=rounded
        )
        assert torch.equal(rounded, parameters.table.half())
    assert not torch.equal(rounded, before)
    assert all(p._version > old for p, old in zip(parameters, versions, strict=True))


@needs_native
def test_one_and_two_threads_agree_bit_for_bit():
    spec = make_spec()
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(radiance_gradients(make_batch(300, 20), make_parameters(spec), spec)[1])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@needs_native
def test_rays_without_samples_show_their_background():
    spec = make_spec()
    batch = make_batch(7, 5)._replace(
        positions=torch.zeros(0, 3),
        deltas=torch.zeros(0),
        offsets=torch.zeros(8, dtype=torch.int32),
    )
    out, gradients = radiance_gradients(batch, make_parameters(spec), spec)
    torch.testing.assert_close(out.rgb, batch.backgrounds)
    assert all(float(g.abs().sum()) == 0 for g in gradients)


@needs_native
def test_a_ray_longer_than_a_group_is_rendered_whole():
    spec = make_spec()
    batch = make_batch(3, 1500)._replace(deltas=torch.full((1,), 1e-4))
    n = int(batch.offsets[-1])
    batch = batch._replace(deltas=torch.full((n,), 1e-4))
    assert_matches(batch, make_parameters(spec), spec, "fp32", 1e-5)


@needs_native
@pytest.mark.parametrize("poison", ["targets", "color", "table"])
def test_non_finite_input_changes_nothing_and_is_reported(poison):
    spec, batch = make_spec(), make_batch(20, 10)
    parameters = make_parameters(spec)
    if poison == "targets":
        batch.targets[3, 1] = float("nan")
    else:
        getattr(parameters, poison).view(-1)[:] = float("inf")
    moments = [RadianceParameters(*(torch.zeros_like(p) for p in parameters)) for _ in range(2)]
    before = [p.clone() for p in parameters]
    out = radiance_step_(batch, parameters, moments[0], moments[1], spec, AdamRates(1e-2, 1e-2), step=1)
    assert not out.finite
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    assert all(float(m.abs().sum()) == 0 for moment in moments for m in moment)


@needs_native
def test_wrong_inputs_are_named():
    spec = make_spec()
    batch, parameters = make_batch(4, 5), make_parameters(spec)
    with pytest.raises(ShapeError, match=r"directions must be contiguous \(4, 3\)|offsets must be"):
        radiance_gradients(batch._replace(offsets=batch.offsets.long()), parameters, spec)
    with pytest.raises(ShapeError, match="table must be contiguous"):
        radiance_gradients(batch, parameters._replace(table=parameters.table[:-1]), spec)
    with pytest.raises(ConfigError, match="precision must be"):
        radiance_gradients(batch, parameters, spec, precision="fp16")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="networks must map"):
        RadianceSpec(grid=spec.grid, density=spec.density, color=spec.color, sh_bands=2)
    with pytest.raises(ConfigError, match="no skip connections; set skip=None or use the composed operators"):
        RadianceSpec(grid=spec.grid, density=spec.density, color=dataclasses.replace(spec.color, skip=1))


def test_without_the_library_the_error_names_the_way_out(monkeypatch):
    from polyfield.fields.ops import radiance_step

    monkeypatch.setattr(radiance_step, "native_available", lambda *_: False)
    spec = make_spec()
    with pytest.raises(NativeError, match="composed operators"):
        radiance_gradients(make_batch(4, 5), make_parameters(spec), spec)
