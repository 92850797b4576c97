"""One scene, another field: train a hash grid, make planes of it without photos, and look at both.

Trains for a short time, converts, and compares the two: figures, and a held-out view of teacher, student and their
difference side by side:

    python examples/03_convert_a_model.py
    python examples/03_convert_a_model.py data/lego --to cam --train-seconds 300 --seconds 120
"""

import argparse
from pathlib import Path

from PIL import Image

from polyfield.scenes import ConvertOptions, TrainOptions, compare, load_scene, train_scene
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

    found = compare(teacher, result.model, scene, views=2)
    depth = "" if found.depth_difference is None else f", depth {100 * found.depth_difference:.1f} % apart"
    print(f"{found.psnr:.1f} dB alike on held-out views{depth}")
    print(f"{found.a.psnr:.1f} and {found.b.psnr:.1f} dB on the photos")
    picture = arguments.out / "teacher_and_student.png"
    Image.fromarray(found.pictures[0]).save(picture)
    print(picture)


if __name__ == "__main__":
    main()
