"""An image as a field: choose its frequency, fit it, and ask it for more pixels than it was given.

Fits a small network of sines (SIREN) to an image, by default one drawn here, saves it as one file and renders it at
three times the size:

    python examples/02_fit_an_image.py
    python examples/02_fit_an_image.py photo.png --field planes --steps 2000
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

from polyfield.fields.implicit import KINDS, ImplicitModel
from polyfield.scenes.fit import FitOptions, choose, fit_signal
from polyfield.scenes.signals import read_signal, write_signal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", nargs="?", type=Path, help="an image file; one is drawn where none is given")
    parser.add_argument("--field", choices=list(KINDS), default="siren", help="family of fields")
    parser.add_argument("--steps", type=int, default=150, help="optimisation steps")
    parser.add_argument("--out", type=Path, default=Path("example-fit"), help="folder for the field and the pictures")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    source = read_signal(arguments.image or draw(arguments.out / "drawn.png"))

    # FreSh: compare the image's spectrum with those of untrained networks; the nearest frequency learns fastest. Left
    # out, `fit_signal` does the same by itself.
    options = FitOptions(field=arguments.field, max_steps=arguments.steps)
    choice = choose(source, options) if options.chooses else None
    if choice is not None and choice.chosen is not None:
        print(f"{KINDS[arguments.field].frequency} = {choice.chosen:g}, out of {choice.candidates}")

    result = fit_signal(source, options, out=arguments.out / "field.safetensors", choice=choice)
    print(f"{result.quality.psnr:.1f} dB after {result.steps} steps, {result.parameters} parameters")

    # The file is all that is needed: a function of points in [0, 1]^2, at any size.
    model = ImplicitModel.load(arguments.out / "field.safetensors")
    corner_and_middle = torch.tensor([[0.0, 0.0], [0.5, 0.5]])
    print("red, green, blue there:", model.network(corner_and_middle).detach().tolist())
    width, height = model.size
    large = model.sample((3 * width, 3 * height))
    write_signal(arguments.out / "large.png", "image", large, low=0, high=1, fps=None)
    print(arguments.out / "large.png")


def draw(path: Path) -> Path:
    """Rings that grow finer outwards, 96x64 pixels."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1.5, 1.5, 96), indexing="ij")
    rings = 0.5 + 0.5 * torch.sin(12 * (x.square() + y.square()))
    pixels = torch.stack([rings, 1 - rings, 0.5 + 0.3 * x], 2).clamp(0, 1)
    Image.fromarray((pixels * 255).round().to(torch.uint8).numpy()).save(path)
    return path


if __name__ == "__main__":
    main()
