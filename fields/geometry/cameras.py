"""What are the cameras of a scene, which ray belongs to a pixel, and where does a point land?

`Cameras` is a batch of F posed cameras with per-frame intrinsics; models may be mixed. Conventions: OpenCV camera axes
(x right, y down, z forward), `world_from_camera` (3, 4) poses, pixel centres at +0.5, so that pixel (column i, row j)
is sampled at (i + 0.5, j + 0.5) and the image covers [0, width] x [0, height]. Rays go through the camera's model;
images are never resampled. What intrinsics mean for each model is written in docs/conventions.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from .distortion import Lens, find_lens
from .projection import CameraModel, LensRows, Projection, project_points, unproject

if TYPE_CHECKING:
    from .similarity import Similarity


class Rays(NamedTuple):
    """Half lines: origins (R, 3) and directions (R, 3) of unit length, in the cameras' world frame."""

    origins: Tensor
    directions: Tensor
    radii: Tensor | None = None
    """(R,) radius of the pixel's cone at unit distance, without gradient, for fields that integrate; None: lines."""

    def to(self, device: torch.device | str) -> Rays:
        """The same rays on `device`."""
        radii = None if self.radii is None else self.radii.to(device)
        return Rays(self.origins.to(device), self.directions.to(device), radii)

    def rows(self, chosen: Tensor | slice) -> Rays:
        """Some of the rays, by index (int64), mask (bool) or slice."""
        radii = None if self.radii is None else self.radii[chosen]
        return Rays(self.origins[chosen], self.directions[chosen], radii)


class Projected(NamedTuple):
    """Pixels (N, 2), depth (N,), valid (N,) bool; see `Cameras.project`."""

    pixels: Tensor
    depth: Tensor
    valid: Tensor


@dataclass(frozen=True, eq=False)
class Cameras:
    """A batch of F posed cameras. Tensors are not to be changed in place: derived values are cached.

    Attributes:
        world_from_camera: (F, 3, 4) float poses; columns are the camera's x (right), y (down), z (forward) axes and
            its centre.
        intrinsics: (F, 4) float [fx, fy, cx, cy] in pixels (ORTHOGRAPHIC: fx, fy in pixels per world unit;
            EQUIRECTANGULAR: pixels per radian).
        distortion: (F, 8) float [k1, k2, p1, p2, k3, k4, k5, k6] (OPENCV) or [k1, k2, k3, k4, 0, 0, 0, 0] (FISHEYE).
        model: (F,) uint8 codes of `CameraModel`.
        width: (F,) int32 pixels.
        height: (F,) int32 pixels.

    Raises:
        ShapeError: Shapes or dtypes differ from these.
    """

    world_from_camera: Tensor
    intrinsics: Tensor
    distortion: Tensor
    model: Tensor
    width: Tensor
    height: Tensor

    def __post_init__(self) -> None:
        frames = self.world_from_camera.shape[0] if self.world_from_camera.ndim else 0
        expected = {
            "world_from_camera": (frames, 3, 4),
            "intrinsics": (frames, 4),
            "distortion": (frames, 8),
            "model": (frames,),
            "width": (frames,),
            "height": (frames,),
        }
        for name, shape in expected.items():
            value = getattr(self, name)
            if tuple(value.shape) != shape:
                raise ShapeError(f"{name} of {frames} cameras must have shape {shape}; got {tuple(value.shape)}")
            if value.is_floating_point() != (name in ("world_from_camera", "intrinsics", "distortion")):
                raise ShapeError(f"{name} has the wrong kind of dtype: {value.dtype}")

    @staticmethod
    def create(
        world_from_camera: Tensor,
        *,
        width: int | Tensor,
        height: int | Tensor,
        focal: float | Tensor | None = None,
        principal: Tensor | None = None,
        distortion: Tensor | None = None,
        model: CameraModel | Tensor = CameraModel.PINHOLE,
    ) -> Cameras:
        """Builds cameras from a few numbers, repeated over the frames where they are shared.

        Args:
            world_from_camera: (F, 3, 4) or (3, 4) or with a fourth row.
            width: Pixels, one or (F,).
            height: Pixels, one or (F,).
            focal: fx = fy as one number or (F,), or [fx, fy] as (2,) or (F, 2); (2,) is [fx, fy] also for two cameras.
                None is allowed for EQUIRECTANGULAR only and means the full sphere: width / 2 pi and height / pi.
            principal: (F, 2) or (2,) [cx, cy] pixels; the image centre by default.
            distortion: (F, 8) or (8,); none by default.
            model: One code or (F,) codes.
        """
        poses = world_from_camera[..., :3, :].reshape(-1, 3, 4)
        frames, device = poses.shape[0], poses.device
        size = [torch.as_tensor(value, dtype=torch.int32, device=device).expand(frames) for value in (width, height)]
        extent = torch.stack(size, -1).to(poses)
        codes = torch.as_tensor(int(model) if isinstance(model, CameraModel) else model, device=device)
        codes = codes.to(torch.uint8).expand(frames)
        if focal is None:
            if bool((codes != CameraModel.EQUIRECTANGULAR).any()):
                raise ConfigError("focal must be given for every camera model but EQUIRECTANGULAR; got None")
            lengths = extent / extent.new_tensor([math.tau, math.pi])
        else:
            lengths = torch.as_tensor(focal, device=device).to(poses)
            lengths = lengths[:, None] if lengths.shape == (frames,) and frames != 2 else lengths
            lengths = lengths.expand(frames, 2)
        centre = extent / 2 if principal is None else principal.to(poses).expand(frames, 2)
        bend = poses.new_zeros(8) if distortion is None else distortion.to(poses)
        return Cameras(poses, torch.cat((lengths, centre), -1), bend.expand(frames, 8), codes, size[0], size[1])

    @staticmethod
    def concatenate(batches: Sequence[Cameras]) -> Cameras:
        """Joins batches of cameras in order; at least one."""
        names = Cameras.__dataclass_fields__
        return Cameras(**{name: torch.cat([getattr(batch, name) for batch in batches]) for name in names})

    def __len__(self) -> int:
        return self.world_from_camera.shape[0]

    def __getitem__(self, index: int | slice | Tensor | Sequence[int]) -> Cameras:
        """Selects cameras; the result is a batch, also for an int.

        Args:
            index: Frame number (negative from the end), slice, integer or bool tensor, or sequence of integers.

        Raises:
            IndexError: A number outside the batch.
        """
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"camera {index} of {len(self)}")
            index = slice(index % len(self), index % len(self) + 1)
        elif not isinstance(index, slice):
            index = torch.as_tensor(index, device=self.world_from_camera.device)
            index = index if index.dtype == torch.bool else index.long()
        return Cameras(**{name: getattr(self, name)[index] for name in Cameras.__dataclass_fields__})

    def to(self, device: torch.device | str | None = None, *, dtype: torch.dtype | None = None) -> Cameras:
        """Moves all tensors to a device; `dtype` changes the floating ones."""
        moved = {}
        for name in Cameras.__dataclass_fields__:
            value = getattr(self, name)
            moved[name] = value.to(device=device, dtype=dtype if value.is_floating_point() else None)
        return Cameras(**moved)

    @cached_property
    def kinds(self) -> tuple[int, ...]:
        """The distinct model codes of the batch, known on the host."""
        return tuple(sorted(set(self.model.tolist())))

    @cached_property
    def lens(self) -> Lens:
        """Where distortion folds, and what its inverse costs."""
        focal, centre = self.intrinsics[:, :2].detach(), self.intrinsics[:, 2:].detach()
        extent = torch.stack((self.width, self.height), -1).to(focal)
        corner = torch.maximum(centre.abs(), (extent - centre).abs()) / focal.abs()
        return find_lens(self.distortion, self.model == CameraModel.FISHEYE, corner.norm(dim=-1))

    def centres(self) -> Tensor:
        """(F, 3) positions of the cameras."""
        return self.world_from_camera[:, :, 3]

    def forward(self) -> Tensor:
        """(F, 3) unit optical axes."""
        return self.world_from_camera[:, :, 2]

    def rays(self, frames: Tensor, pixels: Tensor, *, radii: bool = False) -> Rays:
        """Rays through pixels, by each frame's own camera model.

        Pixels may lie outside the image; past the lens limit (see `distortion`) they get the ray of the limit.
        Gradients flow to poses, intrinsics, distortion and pixels.

        Args:
            frames: (R,) int64 indices of cameras, in [0, F).
            pixels: (R, 2) float x, y; pixel centres are at +0.5.
            radii: Whether rays come with the radii of their pixels' cones.

        Returns:
            Rays in the world frame; they start at the camera centre (ORTHOGRAPHIC: on the camera's plane z = 0).

        Raises:
            ShapeError: Shapes that do not match.
            ConfigError: Radii are asked for and a camera is ORTHOGRAPHIC: its pixels see cylinders.
        """
        if frames.ndim != 1 or pixels.shape != (frames.shape[0], 2):
            raise ShapeError(
                f"rays need frames (R,) and pixels (R, 2); got {tuple(frames.shape)} and {tuple(pixels.shape)}"
            )
        rays = self._rays(frames, pixels)
        return rays._replace(radii=self._radii(frames, pixels)) if radii else rays

    def image_rays(self, frame: int, *, radii: bool = False) -> Rays:
        """Rays through all pixel centres of one camera, row by row: (H * W, 3) each; `radii` as `rays` takes it."""
        camera = self[frame]
        columns = torch.arange(int(camera.width), device=self.intrinsics.device) + 0.5
        rows = torch.arange(int(camera.height), device=self.intrinsics.device) + 0.5
        y, x = torch.meshgrid(rows.to(self.intrinsics), columns.to(self.intrinsics), indexing="ij")
        pixels = torch.stack((x.flatten(), y.flatten()), -1)
        rays = camera._rays(None, pixels)
        return rays._replace(radii=camera._radii(None, pixels)) if radii else rays

    @torch.no_grad()
    def _radii(self, frames: Tensor | None, pixels: Tensor) -> Tensor:
        """(R,) radii at unit distance of cones as wide as the pixels.

        A disk of radius r has variance r^2 / 4 along each axis and a square of side w has w^2 / 12: r = 2 / sqrt(12) w
        (mip-NeRF, Barron et al. 2021, section 3.1). The side is the root of the area between the pixel's edges, which
        is its solid angle: pixels need not be square, nor rays bend equally along both axes.
        """
        if CameraModel.ORTHOGRAPHIC in self.kinds:
            raise ConfigError(
                "rays of ORTHOGRAPHIC cameras do not diverge, so that their pixels have no cones; take cameras of "
                "another model, or a field that does not integrate its encoding"
            )
        edges = 0.5 * torch.eye(2).to(pixels)
        across, down = (
            self._rays(frames, pixels + edge).directions - self._rays(frames, pixels - edge).directions
            for edge in edges
        )
        area = torch.linalg.vector_norm(torch.linalg.cross(across, down, dim=-1), dim=-1)
        return area.sqrt() * (2 / math.sqrt(12))

    def _rays(self, frames: Tensor | None, pixels: Tensor) -> Rays:
        pose, intrinsics = _rows(self.world_from_camera, frames), _rows(self.intrinsics, frames)
        uv = (pixels - intrinsics[:, 2:]) / intrinsics[:, :2]
        if self.kinds == (CameraModel.PINHOLE,):  # the path of most train steps: no masks, no camera-frame tensors
            direction = torch.addcmul(torch.addcmul(pose[:, :, 2], pose[:, :, 0], uv[:, :1]), pose[:, :, 1], uv[:, 1:])
            origin = pose[:, :, 3].expand(direction.shape)
        else:
            start, ahead = self._per_model(frames, uv, unproject)
            rotation = pose[:, :, :3]
            direction = _rotate(rotation, ahead)
            origin = pose[:, :, 3] + _rotate(rotation, start)
        return Rays(origin, direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True))

    def project(self, frame: int | Tensor, points: Tensor) -> Projected:
        """Where points land; the inverse of `rays`.

        Args:
            frame: One camera, or (N,) int64, one for each point.
            points: (N, 3) in the world frame.

        Returns:
            pixels (N, 2); depth (N,) (PINHOLE, OPENCV, ORTHOGRAPHIC: along the optical axis; FISHEYE, EQUIRECTANGULAR:
            distance to the centre); valid (N,): in front of the camera, within the lens limit and inside the image.
            Pixels of invalid points are finite but meaningless. Gradients flow to points, poses, intrinsics and
            distortion.

        Raises:
            ShapeError: Shapes that do not match.
        """
        if points.ndim != 2 or points.shape[1] != 3:
            raise ShapeError(f"points must be (N, 3); got {tuple(points.shape)}")
        if isinstance(frame, int):
            return self[frame]._project(None, points)
        if frame.shape != points.shape[:1]:
            raise ShapeError(f"frame must be an int or ({points.shape[0]},); got {tuple(frame.shape)}")
        return self._project(frame, points)

    def _project(self, frames: Tensor | None, points: Tensor) -> Projected:
        """`project` without checks; frames None means the only camera of the batch."""
        pose, intrinsics = _rows(self.world_from_camera, frames), _rows(self.intrinsics, frames)
        local = _rotate(pose[:, :, :3].transpose(1, 2), points - pose[:, :, 3])
        uv, depth, inside = Projection(*self._per_model(frames, local, project_points))
        pixels = uv * intrinsics[:, :2] + intrinsics[:, 2:]
        extent = torch.stack((_rows(self.width, frames), _rows(self.height, frames)), -1)
        return Projected(pixels, depth, inside & ((pixels >= 0) & (pixels <= extent)).all(-1))

    def _per_model(self, frames: Tensor | None, inputs: Tensor, function) -> tuple[Tensor, ...]:
        """Applies a function of `projection` to rows of each model that occurs.

        With several models every function sees all rows and its own are picked, so that nothing waits for the device.
        Rows of other models get an undistorted lens: a formula fed with foreign coefficients can be infinite, and its
        gradient NaN where it was not picked.
        """
        lens = None
        if CameraModel.OPENCV in self.kinds or CameraModel.FISHEYE in self.kinds:
            lens = LensRows(
                _rows(self.distortion, frames),
                _rows(self.lens.limit, frames),
                _rows(self.lens.reach, frames),
                self.lens.steps,
            )
        if len(self.kinds) <= 1:
            return tuple(function(self.kinds[0] if self.kinds else CameraModel.PINHOLE, inputs, lens))
        model = _rows(self.model, frames)
        result = None
        for kind in self.kinds:
            mine = (model == kind)[:, None]
            own = lens
            if lens is not None:
                one = torch.ones_like(lens.limit)
                own = LensRows(
                    torch.where(mine, lens.distortion, torch.zeros_like(lens.distortion)),
                    torch.where(mine[:, 0], lens.limit, one),
                    torch.where(mine[:, 0], lens.reach, one),
                    lens.steps,
                )
            parts = function(kind, inputs, own)
            masks = [mine if part.ndim == 2 else mine[:, 0] for part in parts]
            pairs = zip(masks, parts, result if result is not None else parts, strict=True)
            result = tuple(torch.where(mask, part, other) for mask, part, other in pairs)
        assert result is not None
        return result

    def downscaled(self, factor: int) -> Cameras:
        """Cameras of images area-downscaled by an integer; rows and columns that do not fill a block are cut off."""
        if not isinstance(factor, int) or factor < 1:
            raise ConfigError(f"downscale factor must be an integer of at least 1; got {factor!r}")
        if bool(((self.width < factor) | (self.height < factor)).any()):
            raise ConfigError(
                f"downscale factor {factor} leaves nothing of an image of "
                f"{int(self.width.min())} x {int(self.height.min())}; take a smaller one"
            )
        return replace(
            self, intrinsics=self.intrinsics / factor, width=self.width // factor, height=self.height // factor
        )

    def transformed(self, similarity: Similarity) -> Cameras:
        """The same cameras in another frame; they see the transformed world as they saw the old one."""
        rotation = similarity.rotation.to(self.world_from_camera) @ self.world_from_camera[:, :, :3]
        pose = torch.cat((rotation, similarity.apply(self.centres())[:, :, None]), -1)
        intrinsics = self.intrinsics
        if CameraModel.ORTHOGRAPHIC in self.kinds:
            flat = (self.model == CameraModel.ORTHOGRAPHIC)[:, None]
            factor = torch.where(flat, 1.0 / similarity.scale, 1.0).to(intrinsics)
            intrinsics = torch.cat((intrinsics[:, :2] * factor, intrinsics[:, 2:]), -1)
        return self._with(world_from_camera=pose, intrinsics=intrinsics)

    def _with(self, **changes: Tensor) -> Cameras:
        """A copy that keeps the cached lens: for changes that leave models, distortion and the image's extent in uv
        alone.
        """
        result = replace(self, **changes)
        for name in ("kinds", "lens"):
            if name in self.__dict__:
                result.__dict__[name] = self.__dict__[name]
        return result


def _rows(values: Tensor, frames: Tensor | None) -> Tensor:
    """Rows of per-frame values: gathered by frame, or the one row, which broadcasts."""
    return values if frames is None else values.index_select(0, frames)


def _rotate(rotation: Tensor, vectors: Tensor) -> Tensor:
    """(N or 1, 3, 3) times (N, 3)."""
    x, y, z = vectors[:, 0:1], vectors[:, 1:2], vectors[:, 2:3]
    return torch.addcmul(torch.addcmul(rotation[:, :, 0] * x, rotation[:, :, 1], y), rotation[:, :, 2], z)
