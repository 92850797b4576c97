"""From photos to a model file, and back to numbers: the Python API in one page.

Loads a scene, trains a hash-grid radiance field for a short time, renders a view that was held out, saves and loads the
model, and asks it for density and colour at points of your own. Run it with no arguments for the built-in scene:

    python examples/01_train_and_render.py
    python examples/01_train_and_render.py data/lego --steps 2000 --size 400
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

from polyfield.fields import Model
from polyfield.fields.ops.activations import density_from_raw
from polyfield.fields.render import render
from polyfield.scenes import TrainOptions, load_scene, train_scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", nargs="?", default="demo", help="a folder with posed photos, or 'demo'")
    parser.add_argument("--steps", type=int, default=200, help="optimisation steps")
    parser.add_argument("--size", type=int, default=200, help="width of the rendered picture, about, pixels")
    parser.add_argument("--out", type=Path, default=Path("example-run"), help="folder for the model and the picture")
    arguments = parser.parse_args()

    # A scene is cameras, images and splits, in a normalised frame (z up, region of interest about [-1, 1]^3).
    scene = load_scene(arguments.scene)
    print(f"{scene.name}: {len(scene.cameras)} photos, a capture of kind {scene.kind!r}")

    # Options of the command line are fields of TrainOptions. Steps of a quarter of the usual size are for a quick look.
    options = TrainOptions(max_steps=arguments.steps, samples=1 << 16, seed=0)
    result = train_scene(scene, options, run=arguments.out)
    print(f"trained {result.steps} steps in {result.train_seconds:.1f} s with {result.precision}")

    # The result is one file: field, occupancy grid and the way back to the data set's own frame. Loading it runs no
    # code from the file.
    model = Model.load(result.model_path)

    # Any single camera renders to colour, opacity, depth and normals; here one that was not trained on.
    held_out = scene.splits["test"][:1]
    camera = scene.cameras[held_out]
    camera = camera.downscaled(max(1, int(camera.width[0]) // arguments.size))
    with torch.no_grad():
        frame = render(model, camera)
    pixels = (frame.rgb.clamp(0, 1) * 255 + 0.5).to(torch.uint8).numpy()
    Image.fromarray(pixels).save(arguments.out / "held_out.png")
    print(f"wrote {arguments.out / 'held_out.png'}, {pixels.shape[1]}x{pixels.shape[0]} pixels")

    # A field is a function of points. Block 1 maps positions to a raw density and features, block 2 adds a direction
    # and gives colour. Positions are in the scene frame; from the data set's: model.to_dataset.inverse().apply(points).
    points = torch.rand(5, 3) - 0.5
    directions = torch.nn.functional.normalize(torch.tensor([[0.0, 1.0, -0.5]]), dim=1).expand(5, 3)
    field = model.representation
    with torch.no_grad():
        geometry = field.geometry(points)
        density = density_from_raw(geometry.density_raw, field.density_activation)
        color = field.radiance(geometry.features, directions, x=points)
    for position, sigma, rgb in zip(points.tolist(), density.tolist(), color.tolist(), strict=True):
        print("at", *(f"{v:+.2f}" for v in position), f" density {sigma:8.3f}  colour", *(f"{v:.2f}" for v in rgb))


if __name__ == "__main__":
    main()
