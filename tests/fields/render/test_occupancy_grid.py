"""Does the occupancy grid find a scene, forget what has gone, and keep what no camera sees out?"""

import math

import pytest
import torch

from polyfield.fields.errors import ConfigError, ShapeError
from polyfield.fields.render.occupancy import OccupancyGrid

STEP = math.sqrt(3) / 512


def ball(radius):
    """Raw density: 50 per unit inside a ball, nothing outside."""
    return lambda x: torch.where(x.norm(dim=1) < radius, math.log(50.0), -20.0)


def refreshed(radius=0.5, cascades=1, resolution=16, refreshes=1, **options):
    grid = OccupancyGrid(cascades=cascades, resolution=resolution)
    for k in range(refreshes):
        grid.update(ball(radius), activation="exp", step=k, seed=1, step_size=STEP, warmup=True, **options)
    return grid


def test_everything_is_occupied_before_the_first_refresh():
    grid = OccupancyGrid(cascades=2, resolution=8)
    assert grid.occupied_fraction() == 1.0
    assert not bool(grid.coarse.any())


@pytest.mark.parametrize("cascades", [1, 3])
def test_warmup_finds_the_ball_in_every_cascade(cascades):
    grid = refreshed(cascades=cascades)
    centres = grid.cell_centres()
    cell = torch.exp2(torch.arange(cascades).float())[:, None, None, None] * 2 / 16
    distance = centres.norm(dim=-1)
    flags = grid.flags()
    assert bool(flags[distance < 0.5 - cell].all())
    pooled = cell * 2  # a coarser cell is occupied where a finer one in it is
    assert not bool(flags[distance > 0.5 + pooled].any())


def test_stored_value_is_the_thickness_of_a_step():
    grid = refreshed()
    assert float(grid.grid.max()) == pytest.approx(50 * STEP, rel=1e-5)
    assert float(refreshed(refreshes=3).grid.max()) == pytest.approx(50 * STEP, rel=1e-5)  # the maximum, not a sum


def test_later_refreshes_look_at_an_eighth_of_the_cells_or_as_many_as_asked():
    grid = refreshed()
    seen = []

    def count(x):
        seen.append(x.shape[0])
        return ball(0.5)(x)

    options = {"activation": "exp", "seed": 1, "step_size": STEP}
    grid.update(count, step=300, **options)
    grid.update(count, step=316, samples=100, **options)
    grid.update(count, step=332, samples=0, **options)
    assert seen == [16**3 // 8, 100]


def test_density_that_has_gone_fades_and_new_density_appears():
    grid = refreshed(0.5)
    old = grid.occupied_fraction()
    for k in range(120):
        grid.update(ball(0.2), activation="exp", step=k, seed=1, step_size=STEP)
    assert grid.occupied_fraction() < old / 3
    for k in range(10):
        grid.update(ball(0.8), activation="exp", step=k, seed=1, step_size=STEP, warmup=True)
    assert grid.occupied_fraction() > 2 * old


def test_threshold_is_the_mean_where_that_is_smaller():
    grid = OccupancyGrid(resolution=8)
    faint = lambda x: torch.where(x[:, 0] > 0, math.log(2e-3 / STEP), math.log(1e-4 / STEP))
    grid.update(faint, activation="exp", step=0, seed=0, step_size=STEP, warmup=True)
    assert grid.occupied_fraction() == 0.5


@pytest.mark.parametrize("density", [1e-3, 0.3, 1.0])
def test_haze_that_is_the_same_everywhere_is_not_empty(density):
    grid = OccupancyGrid(resolution=16)
    haze = lambda x: torch.full((x.shape[0],), math.log(density))
    grid.update(haze, activation="exp", step=0, seed=0, step_size=STEP, warmup=True)
    assert grid.occupied_fraction() == 1


def test_unseen_cells_are_never_asked_about_and_never_revive():
    grid = OccupancyGrid(resolution=16)
    visible = grid.cell_centres()[..., 0] < 0
    grid.mark_invisible(visible)
    assert grid.occupied_fraction() == 0.5
    asked = []

    def everywhere(x):
        asked.append(x)
        return torch.full((x.shape[0],), 5.0)

    for k in range(3):
        grid.update(everywhere, activation="exp", step=k, seed=1, step_size=STEP, warmup=k == 0)
    assert float(torch.cat(asked)[:, 0].max()) < 0
    assert torch.equal(grid.flags(), visible)
    assert bool((grid.grid[~visible] == -1).all())
    grid.reset()
    assert torch.equal(grid.flags(), visible)
    assert float(grid.grid.max()) == 0


def test_refresh_repeats_exactly_whatever_the_thread_count():
    threads = torch.get_num_threads()
    states = []
    for count in (1, 3):
        torch.set_num_threads(count)
        grid = refreshed(cascades=2)
        grid.update(ball(0.4), activation="exp", step=300, seed=1, step_size=STEP)
        states.append(grid.state_dict())
    torch.set_num_threads(threads)
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_state_round_trips():
    grid, other = refreshed(cascades=2), OccupancyGrid(cascades=2, resolution=16)
    assert set(grid.state_dict()) == {"grid", "bits", "coarse"}
    other.load_state_dict(grid.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(grid.buffers(), other.buffers(), strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_density_does_not_poison_the_grid(bad):
    grid = refreshed()
    before = grid.flags()
    raw = lambda x: torch.where(x[:, 0] > 0, bad, ball(0.5)(x))
    grid.update(raw, activation="exp", step=9, seed=1, step_size=STEP)
    assert bool(torch.isfinite(grid.grid).all())
    if math.isnan(bad):
        assert torch.equal(grid.flags()[..., 8:], before[..., 8:])  # as it was, a little decayed


def test_errors_name_what_is_wrong():
    with pytest.raises(ConfigError, match=r"cascades must be 1 to 16, .* got 0 and 128"):
        OccupancyGrid(cascades=0)
    with pytest.raises(ConfigError, match=r"decay must be in \[0, 1\] and threshold >= 0; got 2 and 0.01"):
        OccupancyGrid(resolution=8, decay=2)
    grid = OccupancyGrid(resolution=8)
    with pytest.raises(ShapeError, match=r"one value a point, \(512,\); got \(512, 1\)"):
        grid.update(lambda x: x[:, :1], activation="exp", step=0, seed=0, step_size=STEP, warmup=True)
    with pytest.raises(ShapeError, match=r"visible must be \(1, 8, 8, 8\) bool"):
        grid.mark_invisible(torch.ones(8, 8, 8))


def test_the_occupied_box_is_that_of_the_occupied_cells_of_all_cascades():
    cells = [(3, 5, 7), (9, 4, 12)]  # z, y, x; of 1/8
    for cascades, expected in (
        (1, [[7 / 8 - 1, 4 / 8 - 1, 3 / 8 - 1], [13 / 8 - 1, 6 / 8 - 1, 10 / 8 - 1]]),
        (2, [[3 / 4 - 1, 2 / 4 - 1, 1 / 4 - 1], [7 / 4 - 1, 3 / 4 - 1, 5 / 4 - 1]]),  # coarser cells cover those
    ):
        grid = OccupancyGrid(cascades=cascades, resolution=16)
        for cell in cells:
            grid.grid[(0, *cell)] = 1.0
        grid.refresh_bits()
        assert torch.equal(grid.occupied_box(), torch.tensor(expected))
    grid.grid[1, 15, 0, 8] = 1.0
    grid.refresh_bits()
    assert torch.equal(grid.occupied_box(), torch.tensor([[-0.25, -2.0, -0.75], [0.75, -0.25, 2.0]]))
    grid.bits.zero_()
    assert torch.equal(grid.occupied_box(), torch.tensor([[-2.0] * 3, [2.0] * 3]))


def test_points_are_held_by_the_smallest_cascade_around_them():
    grid = OccupancyGrid(cascades=2, resolution=8)
    flags = torch.zeros(2, 8, 8, 8, dtype=torch.bool)
    flags[0, 4, 5, 6] = True  # z 0 to 0.25, y 0.25 to 0.5, x 0.5 to 0.75
    flags[1, 0, 7, 7] = True
    flags[0, 4, 4, 7] = True  # next to the cell of the larger cascade that (1.2, 0.1, 0.1) lies in
    grid.take_flags(flags)
    assert not bool(grid.holds(torch.tensor([[1.2, 0.1, 0.1]])))
    x = torch.tensor(
        [[0.6, 0.3, 0.1], [0.8, 0.3, 0.1], [1.9, 1.6, -1.6], [0.9, 0.9, -0.9], [2.1, 1.6, -1.6], [float("nan"), 0, 0]]
    )
    assert grid.holds(x).tolist() == [True, False, True, False, False, False]
    centres = grid.cell_centres()[0].reshape(-1, 3)
    assert torch.equal(grid.holds(centres), grid.flags()[0].flatten())
    with pytest.raises(ShapeError, match="flags must be"):
        grid.take_flags(flags[:1])


def test_looking_again_drops_what_has_thinned_out_and_adds_nothing():
    grid = refreshed()
    before = grid.flags()
    grid.look_again(ball(0.2), activation="exp", step=9, seed=1, step_size=STEP)
    fresh = OccupancyGrid(cascades=1, resolution=16)
    for step in range(8):
        fresh.update(ball(0.2), activation="exp", step=step, seed=2, step_size=STEP, warmup=True)
    assert int(before.sum()) > int(grid.flags().sum()) > 0
    assert bool((before | ~grid.flags()).all())
    assert int((grid.flags() ^ (fresh.flags() & before)).sum()) < 0.3 * int(grid.flags().sum())
    everywhere, nowhere = OccupancyGrid(resolution=16), OccupancyGrid(resolution=16)
    nowhere.take_flags(torch.zeros_like(nowhere.flags()))
    nowhere.look_again(ball(0.2), activation="exp", step=9, seed=1, step_size=STEP)
    assert nowhere.occupied_fraction() == 0
    everywhere.look_again(ball(0.2), activation="exp", step=9, seed=1, step_size=STEP)
    assert 0 < everywhere.occupied_fraction() < 0.1
