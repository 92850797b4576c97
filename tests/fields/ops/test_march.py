"""Does marching find exactly the lattice points in occupied cells, in waves or at once, and do the waves join right?"""

import math
from typing import Any

import pytest
import torch
from helpers.packed_rays import SIZES, STEP, generator, packed_samples, random_grid, random_rays
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfield.fields.errors import ConfigError, ShapeError
from polyfield.fields.ops.activations import DENSITY_ACTIVATIONS
from polyfield.fields.ops.composite import composite
from polyfield.fields.ops.march import (
    march_rays,
    march_rays_reference,
    occupied_at,
    pack_waves,
    pack_waves_reference,
    trim_samples,
    trim_samples_reference,
)
from polyfield.fields.ops.occupancy import pack_bitfield
from polyfield.fields.ops.ray_box import intersect_box

G = 32
WAYS = [(1, 0.0), (3, 0.0), (2, 1 / 64), (4, 1 / 256)]  # cascades, cone angle


def scene(rays, cascades, share=0.05, seed=0, resolution=G) -> list[Any]:
    """Arguments of march_rays up to the coarse mip."""
    reach = 2.0 ** (cascades - 1)
    origins, directions = random_rays(rays, reach, seed)
    near, far = intersect_box(origins, directions, torch.full((3,), -reach), torch.full((3,), reach))
    return [origins, directions, near, far, None, None, *random_grid(cascades, resolution, share, seed)]


def settings_of(cascades, cone=0.0, resolution=G, **changes) -> dict[str, Any]:
    given = {"cascades": cascades, "resolution": resolution, "step_size": STEP, "cone_angle": cone}
    return {**given, "samples_per_ray": 4096, "capacity": 1 << 22, "seed": 3, "step": 7, "jitter": True, **changes}


def reference(arguments, **options):
    names = ("cascades", "resolution", "step_size", "cone_angle", "samples_per_ray")
    rest = {k: v for k, v in options.items() if k not in names}
    return march_rays_reference(*arguments[:7], *(options[k] for k in names), **rest)


def assert_same(a, b):
    for name, value, expected in zip(a._fields, a, b, strict=True):
        assert torch.equal(value, expected), name


def per_ray(marched):
    return [
        marched.distances[a:b] for a, b in zip(marched.offsets[:-1].tolist(), marched.offsets[1:].tolist(), strict=True)
    ]


@pytest.mark.parametrize(("cascades", "cone"), WAYS)
@pytest.mark.parametrize("rays", SIZES)
def test_native_finds_bit_for_bit_what_looking_everywhere_finds(rays, cascades, cone):
    arguments, options = scene(rays, cascades), settings_of(cascades, cone)
    assert_same(march_rays(*arguments, **options), reference(arguments, **options))


@settings(deadline=None, max_examples=12)
@given(
    st.integers(0, 10**6), st.sampled_from(WAYS), st.sampled_from([8, 24, 40]), st.sampled_from([0.002, 0.05, 0.5, 1.0])
)
def test_leaps_change_nothing_whatever_the_grid(seed, way, resolution, share):
    arguments = scene(40, way[0], share, seed, resolution)
    options = settings_of(*way, resolution=resolution, seed=seed, step_size=0.015)
    assert_same(march_rays(*arguments, **options), reference(arguments, **options))


@pytest.mark.parametrize(("cascades", "cone"), WAYS)
def test_every_sample_lies_in_an_occupied_cell_within_its_bounds(cascades, cone):
    arguments = scene(200, cascades)
    out = march_rays(*arguments, **settings_of(cascades, cone))
    assert out.distances.numel() > 100
    assert bool(occupied_at(out.positions, out.deltas, arguments[6], cascades, G).all())
    ray = torch.repeat_interleave(torch.arange(200), (out.offsets[1:] - out.offsets[:-1]).long())
    assert bool((out.distances >= arguments[2][ray]).all() and (out.distances < arguments[3][ray]).all())
    exact = arguments[0][ray] + out.distances[:, None] * arguments[1][ray]
    torch.testing.assert_close(out.positions, exact, rtol=0, atol=1e-6)


def test_every_occupied_cell_crossed_for_longer_than_a_step_gets_a_sample():
    arguments = scene(300, 1, share=0.03)
    out = march_rays(*arguments, **settings_of(1))
    cells = ((out.positions + 1) * (G / 2)).long().clamp(0, G - 1)
    ray = torch.repeat_interleave(torch.arange(300), (out.offsets[1:] - out.offsets[:-1]).long())
    sampled = torch.zeros(300, G, G, G, dtype=torch.bool)
    sampled[ray, cells[:, 2], cells[:, 1], cells[:, 0]] = True
    flags = ((arguments[6][0][:, None].long() >> torch.arange(8)) & 1).bool().reshape(G, G, G)
    z, y, x = flags.nonzero().unbind(1)
    low = torch.stack([x, y, z], 1).double() * (2 / G) - 1
    origins, directions = arguments[0].double(), arguments[1].double()
    t0 = (low - origins[:, None]) / directions[:, None]
    t1 = (low + 2 / G - origins[:, None]) / directions[:, None]
    enter = torch.minimum(t0, t1).amax(2).clamp(min=arguments[2].double()[:, None])
    leave = torch.maximum(t0, t1).amin(2).clamp(max=arguments[3].double()[:, None])
    # Half a step after near the lattice begins, hence the first cell may need one and a half.
    long_enough = leave - enter > torch.where(enter <= arguments[2].double()[:, None], 2, 1) * STEP * 1.001
    assert int(long_enough.sum()) > 100
    assert bool(sampled[:, z, y, x][long_enough].all())


def test_constant_steps_stay_on_one_lattice_that_jitter_shifts():
    arguments = scene(100, 1)
    still = march_rays(*arguments, **settings_of(1, jitter=False))
    moved = march_rays(*arguments, **settings_of(1, jitter=True))
    for near, a, b in zip(arguments[2].tolist(), per_ray(still), per_ray(moved), strict=True):
        if math.isinf(near):
            continue
        steps = (a.double() - near) / STEP
        torch.testing.assert_close(steps, (steps - 0.5).round() + 0.5, rtol=0, atol=1e-3)
        shift = (b.double() - near) / STEP
        turn = torch.exp(2j * math.pi * shift)
        assert bool(((turn - turn.mean()).abs() < 0.02).all()) if len(b) else True


def test_jitter_is_uniform_and_depends_on_ray_number_seed_and_step_only():
    rays = 2000
    origins = torch.tensor([[-3.0, 0.0, 0.0]]).expand(rays, 3).contiguous()
    directions = torch.tensor([[1.0, 0.0, 0.0]]).expand(rays, 3).contiguous()
    near, far = torch.full((rays,), 2.5), torch.full((rays,), 3.0)
    grid = (torch.full((1, G**3 // 8), 255, dtype=torch.uint8), torch.zeros(1, (G // 8) ** 3, dtype=torch.uint8))
    options = settings_of(1, samples_per_ray=1)
    first = march_rays(origins, directions, near, far, None, None, *grid, **options).distances
    u = ((first - 2.5) / STEP).double()
    assert 0 <= float(u.min()) < 0.01
    assert 0.99 < float(u.max()) <= 1.0001
    assert float(u.mean()) == pytest.approx(0.5, abs=0.03)
    order = torch.randperm(rays).int()
    shuffled = march_rays(origins, directions, near, far, None, order, *grid, **options).distances
    assert torch.equal(shuffled, first[order.long()])
    for change in ({"seed": 4}, {"step": 8}):
        other = march_rays(origins, directions, near, far, None, None, *grid, **{**options, **change}).distances
        assert float((other == first).float().mean()) < 0.05


@pytest.mark.parametrize(
    ("run", "cascades", "cone"),
    [(march_rays, *way) for way in WAYS] + [("reference", 1, 0.0), ("reference", 2, 1 / 64)],
)
def test_waves_concatenated_are_one_long_march(cascades, cone, run):
    arguments = scene(150, cascades, share=0.1)
    whole = march_rays(*arguments, **settings_of(cascades, cone))
    pieces = [[] for _ in range(150)]
    active, cursor, wave = torch.arange(150, dtype=torch.int32), None, 0
    while active.numel():
        given = [*arguments[:4], cursor, active.flip(0), *arguments[6:]]
        options = settings_of(cascades, cone, samples_per_ray=(1, 3, 8, 64)[min(wave, 3)])
        out = reference(given, **options) if run == "reference" else run(*given, **options)
        for ray, distances in zip(active.flip(0).tolist(), per_ray(out), strict=True):
            pieces[ray].append(distances)
        cursor = torch.full((150,), math.inf)
        cursor[active.flip(0).long()] = out.cursor
        active, wave = torch.arange(150, dtype=torch.int32)[torch.isfinite(cursor)], wave + 1
    assert wave > 2
    assert torch.equal(torch.cat([torch.cat(p) for p in pieces]), whole.distances)


def test_a_finished_ray_has_no_cursor_and_an_unfinished_one_has_its_next_sample():
    arguments = scene(100, 1)
    whole, cut = (march_rays(*arguments, **settings_of(1, samples_per_ray=n)) for n in (4096, 5))
    assert bool(torch.isinf(whole.cursor).all())
    for distances, few, cursor in zip(per_ray(whole), per_ray(cut), cut.cursor.tolist(), strict=True):
        assert torch.equal(few, distances[:5])
        assert cursor == (distances[5].item() if len(distances) > 5 else math.inf)


def test_rays_that_do_not_fit_are_counted_get_nothing_and_can_go_on():
    arguments = scene(100, 1, share=0.2)
    whole = march_rays(*arguments, **settings_of(1, samples_per_ray=16))
    counts = whole.offsets[1:] - whole.offsets[:-1]
    capacity = int(whole.offsets[-1]) // 2
    options = settings_of(1, samples_per_ray=16, capacity=capacity)
    out = march_rays(*arguments, **options)
    kept = whole.offsets[1:] <= capacity
    assert out.distances.shape[0] <= capacity
    assert int(out.dropped) == int((~kept & (counts > 0)).sum()) > 0
    assert torch.equal(out.offsets[1:] - out.offsets[:-1], torch.where(kept, counts, 0))
    assert torch.equal(out.distances, whole.distances[: int(out.offsets[-1])])
    assert_same(out, reference(arguments, **options))
    rest = (~kept).nonzero()[:, 0].int()
    cursor = torch.full((100,), math.inf).index_put((rest.long(),), out.cursor[rest.long()])
    arguments[4:6] = [cursor, rest]
    again = march_rays(*arguments, **settings_of(1, samples_per_ray=16))
    assert torch.equal(torch.cat([out.distances, again.distances]), whole.distances)


def test_cone_steps_grow_with_distance_between_their_bounds():
    full = (torch.full((3, G**3 // 8), 255, dtype=torch.uint8), torch.zeros(3, (G // 8) ** 3, dtype=torch.uint8))
    ray = [
        torch.tensor([[-3.9, 0.01, 0.02]]),
        torch.tensor([[1.0, 0.0, 0.0]]),
        torch.tensor([0.0]),
        torch.tensor([7.8]),
    ]
    out = march_rays(*[*ray, None, None, *full], **settings_of(3, 1 / 32, jitter=False))
    expected = (out.distances / 32).clamp(STEP, math.sqrt(3) * 8 / G)
    torch.testing.assert_close(out.deltas, expected)
    torch.testing.assert_close(out.distances[1:] - out.distances[:-1], out.deltas[:-1], rtol=1e-4, atol=1e-6)
    assert float(out.deltas[0]) == pytest.approx(STEP)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("cone", [0.0, 0.01])
def test_rays_that_are_not_finite_get_nothing_and_disturb_nobody(bad, cone):
    arguments, options = scene(40, 2, share=0.3), settings_of(2, cone, step_size=0.02)
    clean = per_ray(march_rays(*arguments, **options))
    for which in range(4):
        if which == 3 and bad == math.inf:
            continue  # an open end is allowed
        broken = [t.clone() if isinstance(t, torch.Tensor) else t for t in arguments]
        broken[which][7] = bad
        out = march_rays(*broken, **options)
        assert_same(out, reference(broken, **options))
        for k, (a, b) in enumerate(zip(per_ray(out), clean, strict=True)):
            assert (len(a) == 0) if k == 7 else torch.equal(a, b)


@pytest.mark.parametrize("cone", [0.0, 0.01])
def test_extreme_rays_end(cone):
    grid = random_grid(1, G, 0.5)
    rows = [
        ([0.1, 0.2, 0.3], [1.0, 0.0, 0.0], 0.0, math.inf),  # open end
        ([0.1, 0.2, 0.3], [0.0, 0.0, 0.0], 0.0, math.inf),  # no direction
        ([0.1, 0.2, 0.3], [1e-30, 0.0, 0.0], 0.0, 1e30),
        ([-1e6, 0.2, 0.3], [1.0, 0.0, 0.0], 0.0, 2e6),  # too far for the lattice
        ([-100.0, 0.2, 0.3], [1.0, 1e-3, 0.0], 0.0, math.inf),
        ([-1.0, 1.0, 1.0], [1.0, 0.0, 0.0], 0.0, 2.0),  # along an edge of the grid
        ([0.1, 0.2, 0.3], [1.0, 0.0, 0.0], -1.0, 1.0),  # near before the camera
        ([0.1, 0.2, 0.3], [1.0, 0.0, 0.0], 1.0, 0.5),
    ]
    o, d, near, far = (torch.tensor(column) for column in zip(*rows, strict=True))
    given = [o, d, near, far, None, None, *grid]
    out = march_rays(*given, **settings_of(1, cone, samples_per_ray=50))
    counts = out.offsets[1:] - out.offsets[:-1]
    assert counts[0] > 0
    assert counts[1] == counts[2] == counts[3] == counts[5] == counts[6] == counts[7] == 0
    assert_same(out, reference(given, **settings_of(1, cone, samples_per_ray=50)))
    big = torch.full((8,), 1e30)
    given[4] = big
    assert march_rays(*given, **settings_of(1, cone)).distances.numel() == 0


def test_marching_does_not_depend_on_the_thread_count():
    arguments, options = scene(1000, 2), settings_of(2, capacity=5000)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one = march_rays(*arguments, **options)
    torch.set_num_threads(3)
    assert_same(march_rays(*arguments, **options), one)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("activation", DENSITY_ACTIVATIONS)
@pytest.mark.parametrize("rays", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_trim_equals_reference(activation, rays, dtype):
    s = packed_samples(rays, dtype, seed=rays)
    raw, carried = s["density_raw"] * 1.5 + 2, torch.linspace(0, 12, rays, dtype=dtype)
    given = (raw, s["deltas"], s["offsets"], carried)
    live, depth, finished = trim_samples(*given, activation=activation)
    wanted, wanted_depth, wanted_finished = trim_samples_reference(*given, activation=activation, threshold=1e-4)
    same = live == wanted
    assert float((~same).float().sum()) <= 0.002 * rays  # float32 sums may cross the limit a sample apart
    torch.testing.assert_close(depth[same], wanted_depth[same], rtol=1e-5, atol=1e-6)
    assert torch.equal(finished[same], wanted_finished[same])
    assert finished.dtype == torch.bool
    assert live.dtype == torch.int32


def test_trim_keeps_the_samples_that_compositing_gives_weight():
    s: Any = packed_samples(60, torch.float64, longest=60)
    s["density_raw"] += 3
    live, depth, finished = trim_samples(
        s["density_raw"], s["deltas"], s["offsets"], torch.zeros(60, dtype=torch.float64), activation="exp"
    )
    out = composite(**s)
    for r, (a, b) in enumerate(zip(s["offsets"][:-1].tolist(), s["offsets"][1:].tolist(), strict=True)):
        assert int((out.weights[a:b] > 0).sum()) == int(live[r])
    assert 5 < int(finished.sum()) < 60
    torch.testing.assert_close(1 - torch.exp(-depth), out.alpha, rtol=1e-9, atol=1e-9)


def test_trim_in_two_waves_is_trim_at_once():
    raw, delta = torch.randn(12, dtype=torch.float64) + 1, torch.full((12,), 0.4, dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    live, depth, _ = trim_samples(raw, delta, torch.tensor([0, 12]).int(), zero, activation="exp")
    first, carried, done = trim_samples(raw[:5], delta[:5], torch.tensor([0, 5]).int(), zero, activation="exp")
    second, total, _ = trim_samples(raw[5:], delta[5:], torch.tensor([0, 7]).int(), carried, activation="exp")
    assert int(first) + int(second) == int(live)
    assert float(total) == pytest.approx(float(depth))
    if bool(done):
        assert int(second) == 0


def test_nan_density_keeps_its_ray_going_and_stays_in_it():
    raw = torch.zeros(9)
    raw[4] = math.nan
    given = (raw, torch.ones(9) * 20, torch.tensor([0, 3, 6, 9]).int(), torch.zeros(3))
    live, _, finished = trim_samples(*given, activation="exp")
    assert live.tolist() == [1, 1, 1]  # e^0 * 20 is opaque at once
    raw[3] = math.nan
    live, depth, finished = trim_samples(*given, activation="exp")
    assert live.tolist() == [1, 3, 1]
    assert finished.tolist() == [True, False, True]
    assert math.isnan(depth[1])


def pieces(rays, waves, seed=0):
    g = generator(seed)
    ids, counts = [], []
    for _ in range(waves):
        keep = torch.rand(rays, generator=g) < 0.7
        ids.append(torch.arange(rays, dtype=torch.int32)[keep])
        counts.append(torch.randint(0, 9, (int(keep.sum()),), generator=g).int())
    ids, counts = torch.cat(ids), torch.cat(counts)
    gaps = torch.randint(0, 3, counts.shape, generator=g).int()  # rows that were trimmed lie between
    starts = ((counts + gaps).cumsum(0) - counts).int()
    return ids, starts, counts


@pytest.mark.parametrize("rays", [*SIZES, 5000])
def test_packing_equals_reference_and_groups_pieces_in_order(rays):
    ids, starts, counts = pieces(rays, 3)
    index, offsets = pack_waves(ids, starts, counts, rays)
    expected = pack_waves_reference(ids, starts, counts, rays)
    assert torch.equal(index, expected[0])
    assert torch.equal(offsets, expected[1])
    if rays == 33:
        rows = [[] for _ in range(rays)]
        for ray, start, count in zip(ids.tolist(), starts.tolist(), counts.tolist(), strict=True):
            rows[ray] += range(start, start + count)
        assert index.tolist() == [row for piece in rows for row in piece]


def test_errors_name_what_is_wrong():
    arguments, options = scene(5, 1), settings_of(1)
    with pytest.raises(
        ConfigError, match=r"1 <= samples_per_ray <= capacity .* got samples_per_ray 20 and capacity 10"
    ):
        march_rays(*arguments, **{**options, "samples_per_ray": 20, "capacity": 10})
    with pytest.raises(ConfigError, match="step_size must be positive"):
        march_rays(*arguments, **{**options, "step_size": 0.0})
    with pytest.raises(ConfigError, match=r"resolution a positive multiple of 8 .*; got 1 and 30"):
        march_rays(*arguments, **{**options, "resolution": 30})
    with pytest.raises(
        ShapeError, match=r"bits must be \(2, 4096\) uint8 for 2 cascades of 32\^3 cells; got \(1, 4096\)"
    ):
        march_rays(*arguments, **{**options, "cascades": 2})
    with pytest.raises(ShapeError, match=r"near must be \(5,\) float32; got \(4,\)"):
        march_rays(*[*arguments[:2], arguments[2][:4], *arguments[3:]], **options)
    one, two = torch.tensor([2]).int(), torch.tensor([-1]).int()
    for run in (pack_waves, pack_waves_reference):
        with pytest.raises(ShapeError, match=r"ray_ids must be in \[0, 2\)"):
            run(one, one, one, 2)
        with pytest.raises(ShapeError, match="counts from -1"):
            run(one, one, two, 3)
    with pytest.raises(ShapeError, match=r"starts must be \(M,\) int32, one value a piece"):
        pack_waves(one, one.long(), one, 3)
    s = packed_samples(4)
    with pytest.raises(ShapeError, match=r"optical_depth must be \(4,\) torch.float32, one value a ray"):
        trim_samples(s["density_raw"], s["deltas"], s["offsets"], torch.zeros(3), activation="exp")


@pytest.mark.usefixtures("reports_values")
def test_errors_name_which_values_are_wrong():
    arguments, options = scene(5, 1), settings_of(1)
    for run in (march_rays, lambda *a, **o: reference(a, **o)):
        with pytest.raises(ShapeError, match=r"rays must be in \[0, 5\); got 1 ... 5"):
            run(*[*arguments[:5], torch.tensor([1, 5]).int(), *arguments[6:]], **options)
    s = packed_samples(4)
    with pytest.raises(ShapeError, match="offsets must ascend"):
        trim_samples(s["density_raw"], s["deltas"], s["offsets"].flip(0), torch.zeros(4), activation="exp")


def test_operators_are_registered_and_trace():
    arguments, options = scene(6, 1, share=0.3), settings_of(1)
    ops, order = (
        torch.ops.polyfield,
        ("cascades", "resolution", "step_size", "cone_angle", "samples_per_ray", "capacity"),
    )
    given = [options[k] for k in (*order, "seed", "step", "jitter")]
    torch.library.opcheck(ops.march_rays.default, (*arguments, *given))
    s = packed_samples(4)
    torch.library.opcheck(
        ops.trim_samples.default, (s["density_raw"], s["deltas"], s["offsets"], torch.zeros(4), 0, 9.0)
    )
    torch.library.opcheck(ops.pack_waves.default, (*pieces(7, 2), 7))
    for function, inputs, named in (
        (march_rays, arguments, options),
        (trim_samples, (s["density_raw"], s["deltas"], s["offsets"], torch.zeros(4)), {"activation": "exp"}),
        (pack_waves, (*pieces(7, 2), 7), {}),
    ):
        run: Any = function
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        for value, expected in zip(compiled(*inputs, **named), run(*inputs, **named), strict=True):
            assert torch.equal(value, expected)


def test_an_empty_grid_gives_no_samples():
    arguments = scene(50, 2)
    arguments[6:] = pack_bitfield(torch.zeros(2, G, G, G), torch.tensor(0.0))
    out = march_rays(*arguments, **settings_of(2))
    assert out.distances.numel() == 0
    assert bool(torch.isinf(out.cursor).all())


def test_a_leap_does_not_pass_the_end_of_its_cascade():
    values = torch.zeros(2, G, G, G)
    values[1] = 1
    values[1, 8:24, 8:24, 8:24] = 0  # what cascade 0 covers
    grid = pack_bitfield(values, torch.tensor(0.5))
    directions = torch.nn.functional.normalize(torch.randn(50, 3, generator=generator(1)), dim=1)
    given = [torch.zeros(50, 3), directions, torch.zeros(50), torch.full((50,), 9.0), None, None, *grid]
    out = march_rays(*given, **settings_of(2))
    assert_same(out, reference(given, **settings_of(2)))
    first = out.positions[out.offsets[:-1].long()].abs().amax(1)
    assert float(first.min()) >= 1
    assert float(first.max()) < 1 + STEP
