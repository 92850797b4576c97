"""The built-in scene: exact geometry, stated texture periods, determinism, its cache, and that it is not too easy."""

from __future__ import annotations

import os

import pytest
import torch
from helpers.demo_baselines import VoxelGrid, nearest_view_psnr

from polyfield.fields.cache import cache_folder
from polyfield.fields.errors import ConfigError
from polyfield.fields.geometry import Cameras, look_at
from polyfield.scenes import demo, demo_render, demo_shapes, demo_world

UP = torch.tensor([0.0, 0.0, 1.0])


def random_rays(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rays from a sphere of radius 3 towards random points of the unit ball, as (3, N)."""
    generator = torch.Generator().manual_seed(seed)
    origins = torch.nn.functional.normalize(torch.randn(3, count, generator=generator), dim=0) * 3
    targets = torch.randn(3, count, generator=generator) * 0.4
    return origins, torch.nn.functional.normalize(targets - origins, dim=0)


def inside_ellipsoid(p: torch.Tensor) -> torch.Tensor:
    return ((p[0] - 0.1) / 0.5) ** 2 + ((p[1] + 0.2) / 0.3) ** 2 + (p[2] / 0.8) ** 2 < 1


def inside_frustum(p: torch.Tensor) -> torch.Tensor:
    radius = 0.6 + (0.2 - 0.6) * (p[2] + 0.4) / 0.9
    return (p[2] > -0.4) & (p[2] < 0.5) & (p[0].square() + p[1].square() < radius.square())


def inside_slanted_rod(p: torch.Tensor) -> torch.Tensor:
    axis = torch.tensor([1.0, 1.0, 1.0]).reshape(3, 1) / 3**0.5
    along = (p * axis).sum(0)
    return (along.abs() < 0.6) & ((p - along * axis).norm(dim=0) < 0.25)


def inside_box(p: torch.Tensor) -> torch.Tensor:
    c = 3**0.5 / 2
    u, v = c * p[0] + 0.5 * p[1], c * p[1] - 0.5 * p[0]
    return (u.abs() < 0.6) & (v.abs() < 0.4) & (p[2].abs() < 0.3)


def inside_gable(p: torch.Tensor) -> torch.Tensor:
    return (p[0].abs() < 0.7) & (p[2] > -0.3) & (p[1].abs() < 0.5 * (0.3 - p[2]) / 0.6)


a = 0.6 / 3**0.5
SHAPES = {
    "ellipsoid": (demo_shapes.Ellipsoid((0.1, -0.2, 0.0), (0.5, 0.3, 0.8)), inside_ellipsoid),
    "frustum": (demo_shapes.Frustum((0, 0, -0.4), (0, 0, 0.5), 0.6, 0.2), inside_frustum),
    "slanted rod": (demo_shapes.rod((-a, -a, -a), (a, a, a), 0.25), inside_slanted_rod),
    "box": (demo_shapes.box((0, 0, 0), (0.6, 0.4, 0.3), 30.0), inside_box),
    "gable": (demo_shapes.gable((0, 0, 0), (0.7, 0.5, 0.3)), inside_gable),
}


@pytest.mark.parametrize("name", SHAPES)
def test_ray_enters_where_a_dense_march_first_finds_the_inside(name: str) -> None:
    shape, inside = SHAPES[name]
    origins, directions = random_rays(600)
    t = shape.intersect(origins, directions)
    steps = torch.linspace(1.5, 4.5, 1501)
    found = torch.stack([inside(origins + s * directions) for s in steps])
    first = torch.where(found.any(0), steps[found.int().argmax(0)], torch.inf)
    # A march in steps of 0.002 may miss a chord shorter than that, and finds an entry up to one step late.
    both = torch.isfinite(t) & torch.isfinite(first)
    assert int(both.sum()) > 100
    assert int((torch.isfinite(first) & ~torch.isfinite(t)).sum()) == 0
    assert int((torch.isfinite(t) & ~torch.isfinite(first)).sum()) <= 6
    late = (first - t)[both]
    assert float(late.min()) > -1e-4
    assert float(late.quantile(0.98)) < 0.0025


@pytest.mark.parametrize("name", SHAPES)
def test_normals_are_unit_and_face_the_entering_ray(name: str) -> None:
    shape, inside = SHAPES[name]
    origins, directions = random_rays(600, seed=1)
    t = shape.intersect(origins, directions)
    hit = torch.isfinite(t)
    points = (origins + t * directions)[:, hit]
    normals = shape.normal(points)
    torch.testing.assert_close(normals.norm(dim=0), torch.ones(int(hit.sum())), atol=1e-5, rtol=0)
    assert bool((demo_shapes.dot(normals, directions[:, hit]) < 1e-3).all())
    assert float(inside(points + 2e-3 * normals).float().mean()) < 0.01
    assert float(inside(points - 2e-3 * normals).float().mean()) > 0.97  # else: thinner than that at an edge
    assert bool((points[2] <= shape.top + 1e-4).all())


def test_ray_that_starts_inside_or_leaves_does_not_hit() -> None:
    for shape, _ in SHAPES.values():
        directions = torch.nn.functional.normalize(torch.randn(3, 50), dim=0)
        assert bool(torch.isinf(shape.intersect(shape.centre.expand(3, 50), directions)).all())
        assert bool(torch.isinf(shape.intersect(shape.centre + 2 * directions, directions)).all())


def test_culling_changes_no_hit() -> None:
    origins, directions = random_rays(2000, seed=2)
    t, which = demo_render.nearest_hit(origins, directions)
    every = torch.stack([s.shape.intersect(origins, directions) for s in demo_render.world().solids])
    best, index = every.min(0)
    torch.testing.assert_close(t, best, rtol=0, atol=0)
    assert bool((which == torch.where(torch.isfinite(best), index, -1)).all())


def test_no_rays_and_no_hits_give_empty_and_transparent() -> None:
    t, which = demo_render.nearest_hit(torch.zeros(3, 0), torch.zeros(3, 0))
    assert t.numel() == which.numel() == 0
    pose = look_at(torch.tensor([0.0, -3.0, 0.0]), torch.tensor([0.0, -6.0, 0.0]), UP)
    view = demo.render_view(Cameras.create(pose, width=9, height=5, focal=10.0))
    assert int(view.rgba.sum()) == 0
    assert bool(torch.isinf(view.depth).all())
    assert bool((view.solid == -1).all())


def test_pictures_are_the_same_in_one_process_and_in_two() -> None:
    cameras = demo.demo_cameras("train", size=48)[::7]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = demo_render.render_images(cameras)
        torch.set_num_threads(2)
        shared = demo_render.render_images(cameras)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_work_of_a_child_that_fails_is_done_by_the_parent() -> None:
    parent, done = os.getpid(), []

    def draw(worker: int) -> None:
        if os.getpid() != parent:
            os._exit(3)
        done.append(worker)

    demo_render._share_work(draw, 3)
    assert done == [0, 1, 2]


def test_depth_and_normals_agree_with_each_other() -> None:
    camera = demo.demo_cameras("test", size=200)[4]
    view = demo.render_view(camera)
    origins, directions = (part.view(200, 200, 3) for part in camera.image_rays(0)[:2])
    points = origins + view.depth.nan_to_num(posinf=0.0)[..., None] * directions
    here = points[1:-1, 1:-1]
    same = view.solid[1:-1, 1:-1] >= 0
    for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
        same &= view.solid[dy : dy + 198, dx : dx + 198] == view.solid[1:-1, 1:-1]
        flat = (view.normal[dy : dy + 198, dx : dx + 198] * view.normal[1:-1, 1:-1]).sum(-1)
        same &= flat > 0.99
    across = points[1:-1, 2:] - points[1:-1, :-2]
    down = points[2:, 1:-1] - points[:-2, 1:-1]
    normal = torch.nn.functional.normalize(torch.linalg.cross(across, down), dim=-1)
    cosine = (normal * view.normal[1:-1, 1:-1]).sum(-1).abs()[same]
    assert cosine.numel() > 5000
    assert float(cosine.quantile(0.02)) > 0.995
    facing = (view.normal[1:-1, 1:-1] * directions[1:-1, 1:-1]).sum(-1)[view.solid[1:-1, 1:-1] >= 0]
    assert bool((facing < 1e-3).all())
    assert float(here[view.solid[1:-1, 1:-1] >= 0].abs().max()) <= 1.0  # the scene stays inside [-1, 1]^3


def test_alpha_agrees_with_depth_away_from_silhouettes() -> None:
    view = demo.render_view(demo.demo_cameras("test", size=120)[7])
    hit = torch.isfinite(view.depth).float()
    near = torch.nn.functional.max_pool2d(torch.stack([hit, -hit])[None], 3, 1, 1)[0]
    solid, empty = near[1] == -1, near[0] == 0
    alpha = view.rgba[..., 3]
    assert float((alpha[solid] == 255).float().mean()) > 0.999
    assert float((alpha[empty] == 0).float().mean()) > 0.999  # a rod may pass between pixel centres


def test_materials_are_in_range_and_only_where_something_is() -> None:
    view = demo.render_view(demo.demo_cameras("train", size=100)[30])
    hit = view.solid >= 0
    assert float(view.albedo.min()) >= 0
    assert float(view.albedo.max()) <= 1
    assert bool((view.roughness[hit] > 0).all())
    assert int(view.albedo[~hit].count_nonzero()) == 0
    balloon = [s.name for s in demo_render.world().solids].index(demo_world.BALLOON)
    assert float(view.roughness[view.solid == balloon].max()) < 0.5


def test_tether_is_under_two_pixels_wide_in_every_view() -> None:
    cameras = Cameras.concatenate([demo.demo_cameras("train"), demo.demo_cameras("test")])
    tether = next(s for s in demo_render.world().solids if s.name == demo_world.TETHER)
    tops = torch.tensor([[*demo_world.BALLOON_AT[:2], z] for z in torch.linspace(demo_world.LAWN, 0.1, 9).tolist()])
    distance = torch.cdist(cameras.centres(), tops).min()
    assert 2 * demo_world.ROD_RADIUS * demo.FOCAL / float(distance) < 2.0
    # Measured: rays 1/50 pixel apart across the middle of the tether, in the nearest train view from the side.
    camera = demo.demo_cameras("train")[20]
    middle = tether.shape.centre.reshape(1, 3)
    x, y = camera.project(0, middle).pixels[0].tolist()
    pixels = torch.stack([x + torch.arange(-250, 250) / 50, torch.full((500,), y)], 1)
    rays = camera.rays(torch.zeros(500, dtype=torch.long), pixels)
    t = tether.shape.intersect(rays.origins.T, rays.directions.T)
    width = float(torch.isfinite(t).sum()) / 50
    expected = 2 * demo_world.ROD_RADIUS * demo.FOCAL / float((camera.centres() - middle).norm())
    assert 1.0 < width < 2.0
    assert width == pytest.approx(expected, abs=0.12)


def test_finest_textures_have_a_period_of_four_pixels() -> None:
    assert pytest.approx(4.0, abs=0.05) == demo_world.FINEST_PERIOD * demo.FOCAL / demo.DISTANCE
    # Courses of bricks up the middle of the chimney's wall, clear of roof and edges.
    chimney = next(s for s in demo_render.world().solids if s.name == "chimney")
    z = torch.linspace(0.1, 0.24, 1401)
    points = torch.stack([torch.full_like(z, 0.4), torch.full_like(z, 0.2), z])
    height = chimney.material(points, points).albedo[1]
    joints = ((height[1:-1] > height[:-2]) & (height[1:-1] >= height[2:]) & (height[1:-1] > 0.5)).nonzero().squeeze(1)
    period = float(z[joints[-1]] - z[joints[0]]) / max(1, round(float(z[joints[-1]] - z[joints[0]]) / 0.025))
    assert len(joints) >= 4
    assert period * demo.FOCAL / demo.DISTANCE == pytest.approx(4.0, abs=0.2)


def test_highlight_moves_with_the_view_and_matt_surfaces_do_not() -> None:
    scene = demo_render.world()
    index = {s.name: k for k, s in enumerate(scene.solids)}
    sun = torch.nn.functional.normalize(torch.tensor(demo_render.SUN_DIRECTION), dim=0).reshape(3, 1)
    balloon = scene.solids[index[demo_world.BALLOON]].shape
    assert isinstance(balloon, demo_shapes.Ellipsoid)

    def spread(point: torch.Tensor, normal: torch.Tensor, which: int) -> float:
        colours = []
        for tilt in ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5)):
            mirror = 2 * float((normal * sun).sum()) * normal - sun
            away = torch.nn.functional.normalize(mirror + torch.tensor([*tilt, 0.0]).reshape(3, 1), dim=0)
            _, material = demo_render.surface(point, torch.tensor([which]))
            colours.append(demo_render.encode_srgb(demo_render.shade(point, normal, -away, material)))
        return float((torch.stack(colours).amax(0) - torch.stack(colours).amin(0)).max())

    up = torch.nn.functional.normalize(sun + torch.tensor([[0.0], [0.0], [0.6]]), dim=0)
    point = balloon.centre + up * balloon.radii
    assert spread(point, balloon.normal(point), index[demo_world.BALLOON]) > 0.1
    lawn = torch.tensor([[-0.1], [-0.1], [demo_world.LAWN]])
    assert spread(lawn, UP.reshape(3, 1), index["lawn"]) < 0.03


def test_sun_is_blocked_below_the_balloon_and_free_beside_it() -> None:
    sun = torch.nn.functional.normalize(torch.tensor(demo_render.SUN_DIRECTION), dim=0)
    centre = torch.tensor(demo_world.BALLOON_AT)
    shadow = centre - sun * (centre[2] - demo_world.LAWN) / sun[2]
    points = torch.stack([shadow, torch.tensor([0.75, -0.1, demo_world.LAWN])], 1)
    assert demo_render.is_lit(points, UP.reshape(3, 1).expand(3, 2)).tolist() == [False, True]


def test_cache_is_used_and_a_damaged_one_is_drawn_again(tmp_path, monkeypatch) -> None:
    drawn = []

    def fake(cameras: Cameras) -> list[torch.Tensor]:
        drawn.append(len(cameras))
        return [torch.full((demo.SIZE, demo.SIZE, 4), 7, dtype=torch.uint8)] * len(cameras)

    monkeypatch.setattr(demo, "render_images", fake)
    cameras = demo.demo_cameras("test")[:2]
    first = demo._pictures(cameras, tmp_path / "new")
    assert torch.equal(demo._pictures(cameras, tmp_path / "new"), first)
    assert len(drawn) == 1
    (path,) = (tmp_path / "new").iterdir()
    content = path.read_bytes()
    for damaged in (content[:-1] + b"\0", content[: len(content) // 2], b"", content[:-1000] + bytes(1000)):
        path.write_bytes(damaged)
        assert torch.equal(demo._pictures(cameras, tmp_path / "new"), first)
        assert path.read_bytes() == content
    assert len(drawn) == 5


def test_cache_that_cannot_be_written_warns(tmp_path, monkeypatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setattr(demo, "render_images", lambda cameras: [torch.zeros(4, 4, 4, dtype=torch.uint8)] * len(cameras))
    with pytest.warns(RuntimeWarning, match="will be drawn again next time"):
        demo._pictures(demo.demo_cameras("test")[:1], blocked / "sub")


def test_cache_folder_follows_argument_then_environment(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("POLYFIELD_CACHE", str(tmp_path / "env"))
    assert cache_folder() == tmp_path / "env"
    assert cache_folder(tmp_path) == tmp_path
    monkeypatch.delenv("POLYFIELD_CACHE")
    assert cache_folder().name == "polyfield"


def test_wrong_settings_say_what_was_expected() -> None:
    with pytest.raises(ConfigError, match="must be 'train' or 'test'; got 'val'"):
        demo.demo_cameras("val")
    with pytest.raises(ConfigError, match="integer from 1 to 400; got 0"):
        demo.load_demo(downscale=0)


@pytest.mark.slow
def test_nearest_colour_and_a_voxel_grid_of_32_score_under_24_decibels(tmp_path) -> None:
    scene = demo.load_demo(cache_dir=tmp_path)
    train, test = scene.splits["train"], scene.splits["test"]
    assert (len(train), len(test)) == (60, 10)
    pictures = scene.images.pixels.view(70, 400, 400, 4)
    assert nearest_view_psnr(scene.cameras, pictures, train, test) < 24
    grid = VoxelGrid(32)
    grid.fit(scene.cameras, pictures, train, steps=250)
    score = grid.psnr(scene.cameras, pictures, test, stride=4)
    assert 20 < score < 24  # under 20 the baseline itself would not have been fitted


@pytest.mark.slow
def test_load_demo_downscales_cameras_with_the_pictures(tmp_path) -> None:
    scene = demo.load_demo(downscale=4, cache_dir=tmp_path)
    assert scene.images.image(0).shape == (100, 100, 4)
    assert int(scene.cameras.width[0]) == 100
    truth = demo.render_view(demo.demo_cameras("train", size=100)[5], supersample=8).rgba
    error = (scene.images.image(5).float() - truth.float()).abs() * (truth[..., 3:] / 255)
    assert float(error.mean()) < 1.0
