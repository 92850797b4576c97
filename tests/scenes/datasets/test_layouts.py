"""One scene in every layout gives the same rays and pixels; a folder that fits none is told what each lacks."""

import numpy as np
import pytest
import torch
from helpers import datasets as data

from polyfield.fields.errors import ConfigError, FormatError
from polyfield.scenes import load_scene
from polyfield.scenes.datasets import LAYOUTS, parse


def expected_rays(pose, pixels):
    """Pinhole rays by hand."""
    local = np.stack(
        [
            (pixels[:, 0] - data.WIDTH / 2) / data.FOCAL,
            (pixels[:, 1] - data.HEIGHT / 2) / data.FOCAL,
            np.ones(len(pixels)),
        ],
        axis=1,
    )
    world = local @ pose[:, :3].T
    return world / np.linalg.norm(world, axis=1, keepdims=True)


@pytest.mark.parametrize("layout", data.LAYOUTS)
def test_every_layout_gives_the_same_rays_and_pixels_in_the_data_set_frame(tmp_path, layout):
    poses = data.ring_poses()
    scene = load_scene(data.write_dataset(tmp_path, layout, poses))
    assert len(scene.cameras) == len(poses) == len(scene.images)
    back = scene.cameras.transformed(scene.to_scene.inverse())
    pixels = np.array([[0.5, 0.5], [23.5, 15.5], [12.0, 8.0], [3.5, 10.5]])
    for frame in range(len(poses)):
        number = int(scene.images.image(frame)[0, 0, 0])  # which photo this is
        rays = back.rays(torch.full((4,), frame), torch.from_numpy(pixels).float())
        np.testing.assert_allclose(rays.origins.numpy(), np.tile(poses[number][:, 3], (4, 1)), atol=2e-5)
        np.testing.assert_allclose(rays.directions.numpy(), expected_rays(poses[number], pixels), atol=1e-5)
        channels = scene.images.pixels.shape[1]
        np.testing.assert_array_equal(scene.images.image(frame), data.picture(number, channels))
        assert scene.paths[frame].name == data.name(number)


@pytest.mark.parametrize("layout", data.LAYOUTS)
def test_projecting_a_known_point_of_any_layout_lands_on_its_pixel(tmp_path, layout):
    scene = load_scene(data.write_dataset(tmp_path, layout))
    poses = data.ring_poses()
    point = torch.tensor([[0.3, -0.2, 0.4]])
    inside = scene.to_scene.apply(point)
    for frame in range(len(poses)):
        pose = poses[int(scene.images.image(frame)[0, 0, 0])]
        local = pose[:, :3].T @ (point[0].numpy() - pose[:, 3])
        pixel = data.FOCAL * local[:2] / local[2] + [data.WIDTH / 2, data.HEIGHT / 2]
        np.testing.assert_allclose(scene.cameras.project(frame, inside).pixels[0].numpy(), pixel, atol=1e-3)


@pytest.mark.parametrize("layout", [name for name in data.LAYOUTS if name != "blender"])
def test_without_stated_splits_every_eighth_by_name_is_held_out(tmp_path, layout):
    scene = load_scene(data.write_dataset(tmp_path, layout))
    assert scene.splits["test"].tolist() == [0, 8]
    assert scene.splits["train"].tolist() == [1, 2, 3, 4, 5, 6, 7, 9]
    assert [path.name for path in scene.paths] == sorted(path.name for path in scene.paths)
    assert scene.protocol["split_rule"] == "held out: index % 8 == 0 in file-name order of the 10 images present"


def test_blender_keeps_its_splits_and_alpha(tmp_path):
    scene = load_scene(data.write_dataset(tmp_path, "blender"))
    assert scene.splits["train"].tolist() == list(range(8))
    assert scene.splits["test"].tolist() == [8, 9]
    assert scene.kind == "object"
    assert scene.background == "white"
    assert scene.images.pixels.shape[1] == 4
    assert scene.protocol["split_rule"] == "the data set's own"


def test_a_blender_folder_without_test_file_holds_out_by_the_usual_rule(tmp_path):
    data.write_dataset(tmp_path, "blender")
    (tmp_path / "transforms_test.json").unlink()
    scene = load_scene(tmp_path)
    assert scene.splits["test"].tolist() == [0]
    assert len(scene.splits["train"]) == 7


def test_a_json_file_alone_can_be_given(tmp_path):
    data.write_dataset(tmp_path, "transforms")
    (tmp_path / "transforms.json").rename(tmp_path / "other.json")
    assert len(load_scene(tmp_path / "other.json").cameras) == data.FRAMES


def test_where_several_layouts_fit_the_table_decides_unless_one_is_named(tmp_path):
    data.write_dataset(tmp_path, "colmap-bin")
    np.save(tmp_path / "poses_bounds.npy", data.llff_rows(data.ring_poses()))
    assert parse(tmp_path).layout == "colmap"
    assert parse(tmp_path, "llff").layout == "llff"
    with pytest.raises(ConfigError, match="layout must be one of blender, transforms, colmap, llff, neus; got 'nerf'"):
        parse(tmp_path, "nerf")


def test_an_absent_folder_and_an_empty_one_are_told_apart(tmp_path):
    with pytest.raises(FormatError, match=r"nowhere: no such folder; expected a data set or 'demo'"):
        load_scene(tmp_path / "nowhere")
    with pytest.raises(FormatError, match=r"the folder is empty; expected a data set \(NeRF-Synthetic, instant-ngp"):
        load_scene(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(FormatError, match=r"a.txt: is a file; expected a folder"):
        load_scene(tmp_path / "a.txt")


def test_an_unknown_layout_says_what_each_known_one_lacks(tmp_path):
    data.write_images(tmp_path / "images", 3)
    with pytest.raises(FormatError) as caught:
        load_scene(tmp_path)
    text = str(caught.value)
    assert "\n" not in text
    for layout in LAYOUTS.values():
        assert f"{layout.title} lacks" in text
    assert "COLMAP lacks sparse/0/cameras.bin and images.bin (or .txt);" in text
    assert text.endswith("It holds 3 photos but no camera poses: run COLMAP on them first.")


def test_a_data_set_one_folder_deeper_is_pointed_at(tmp_path):
    data.write_dataset(tmp_path / "deeper", "llff")
    with pytest.raises(FormatError, match="deeper is a data set: give that"):
        load_scene(tmp_path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda rows: rows[:, :16], r"expected an array of shape \(photos, 17\), got \(10, 16\)"),
        (lambda rows: rows[:9], "9 poses, but images holds 10 images; the rows follow the file names"),
        (lambda rows: rows * np.where(np.arange(17) == 15, 100, 1), "must be 0 < near < far"),
        (lambda rows: np.where(np.arange(17) == 4, 0.5, rows), "row 0: an image of 24x0.5 pixels"),
        (lambda rows: np.where(np.arange(17) == 14, -1, rows), "row 0: focal length fx is -1 pixels"),
        (lambda rows: np.where(np.arange(17) == 0, np.nan, rows), "row 0: the pose holds NaN or infinity"),
        (lambda rows: np.where(np.arange(17) < 15, rows * 2, rows), "is not rigid"),
    ],
)
def test_a_damaged_llff_file_is_refused_in_one_line(tmp_path, change, text):
    data.write_dataset(tmp_path, "llff")
    np.save(tmp_path / "poses_bounds.npy", change(data.llff_rows(data.ring_poses())))
    with pytest.raises(FormatError, match=text):
        load_scene(tmp_path)


def test_llff_images_8_are_eight_times_smaller_than_the_rows_say(tmp_path):
    data.write_images(tmp_path / "images_8", data.FRAMES)
    np.save(tmp_path / "poses_bounds.npy", data.llff_rows(data.ring_poses(), scale=8))
    scene = load_scene(tmp_path)
    np.testing.assert_allclose(scene.cameras.intrinsics[0], [30, 30, 12, 8], rtol=1e-6)
    assert scene.protocol["source"] == "images_8"
    assert not scene.warnings


def test_neus_makes_its_sphere_the_region_of_interest_and_its_masks_alpha(tmp_path):
    data.write_dataset(tmp_path, "neus")
    (tmp_path / "mask").mkdir()
    mask = np.zeros((data.HEIGHT, data.WIDTH), np.uint8)
    mask[4:12, 6:18] = 255
    for k in range(data.FRAMES):
        data.Image.fromarray(mask).save(tmp_path / "mask" / f"{k:03d}.png")
    scene = load_scene(tmp_path)
    assert scene.kind == "object"
    assert scene.background == "white"
    assert scene.images.masks is None
    np.testing.assert_array_equal(scene.images.image(3)[..., 3], mask)
    centre = scene.to_scene.apply(torch.tensor([[0.1, -0.2, 0.3], [2.1, -0.2, 0.3]], dtype=torch.float64))
    np.testing.assert_allclose(centre[0], 0, atol=1e-9)
    np.testing.assert_allclose(centre[1].norm(), 1, rtol=1e-9)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda a: a.pop("world_mat_4"), "'world_mat_4' is missing; frames must be numbered from 0"),
        (lambda a: a.update(world_mat_2=np.eye(3)), r"'world_mat_2' must be 4x4, got \(3, 3\)"),
        (lambda a: a.update(world_mat_2=np.zeros((4, 4))), "the projection has no inverse"),
        (lambda a: a.update(world_mat_2=np.full((4, 4), np.nan)), "the projection holds NaN or infinity"),
        (lambda a: a.update(scale_mat_0=np.diag([1.0, 2, 1, 1])), "must be a uniform scale and a translation"),
        (lambda a: a.update(scale_mat_3=np.eye(4)), "'scale_mat_3' differs from 'scale_mat_0'"),
        (lambda a: a.clear(), "holds no world_mat_0; it holds nothing"),
    ],
)
def test_a_damaged_neus_file_is_refused_in_one_line(tmp_path, change, text):
    data.write_dataset(tmp_path, "neus")
    arrays = data.neus_arrays(data.ring_poses())
    change(arrays)
    data.write_npz(tmp_path / "cameras_sphere.npz", arrays)
    with pytest.raises(FormatError, match=text):
        load_scene(tmp_path)
