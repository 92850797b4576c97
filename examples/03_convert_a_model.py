"""One scene, another field: train a hash grid, make planes of it without photos, and look at both.

Trains for a short time, converts, and writes the same held-out view of teacher and student side by side:

    python examples/03_convert_a_model.py
    python examples/03_convert_a_model.py data/lego --to cam --train-seconds 300 --seconds 120
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

from polyfield.fields.render import render
from polyfield.scenes import ConvertOptions, TrainOptions, load_scene, train_scene
from polyfield.scenes.convert import convert_model, scene_cameras


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", nargs="?", default="demo", help="a folder with posed photos, or 'demo'")
    parser.add_argument("--to", default="planes", help="kind of field to make")
    parser.add_argument("--train-seconds", type=float, default=8.0, help="time for the teacher")
    parser.add_argument("--seconds", type=float, default=8.0, help="time for the student")
    parser.add_argument("--out", type=Path, default=Path("example-conversion"), help="folder for models and picture")
    arguments = parser.parse_args()

    # A teacher. Steps of a quarter of the usual size are for a quick look.
    scene = load_scene(arguments.scene)
    options = TrainOptions(model="hash", max_seconds=arguments.train_seconds, samples=1 << 14)
    teacher = train_scene(scene, options, run=arguments.out / "teacher").model

    # The student sees no photos: the scene only says from where to look. `polyfield.scenes.convert(teacher, "planes")`
    # is the same in one call.
    wanted = ConvertOptions(to=arguments.to, max_seconds=arguments.seconds, samples=1 << 14)
    result = convert_model(teacher, wanted, cameras=scene_cameras(teacher, scene))
    print(f"{result.psnr_to_teacher:.1f} dB to the teacher after {result.steps} steps in {result.seconds:.1f} s")
    print("taken from the teacher:", ", ".join(result.inherited) or "nothing")
    student = arguments.out / "student.safetensors"
    result.model.save(student)
    print(f"{student}: {student.stat().st_size / 1e6:.1f} MB")

    camera = scene.cameras[scene.splits["test"][:1]]
    camera = camera.downscaled(max(1, int(camera.width[0]) // 200))
    views = torch.cat([render(model, camera).rgb for model in (teacher, result.model)], dim=1)
    picture = arguments.out / "teacher_and_student.png"
    Image.fromarray((views.clamp(0, 1) * 255 + 0.5).to(torch.uint8).cpu().numpy()).save(picture)
    print(picture)


if __name__ == "__main__":
    main()
