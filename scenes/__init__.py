"""Where data comes from and how people drive the engine: scenes, their files, training and the command line.

The names below are imported when first asked for, so that `polyfield --help` needs no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compare import CompareResult as CompareResult
    from .compare import compare as compare
    from .convert import ConvertOptions as ConvertOptions
    from .convert import convert as convert
    from .edit import EditResult as EditResult
    from .edit import edit as edit
    from .edit import edit_model as edit_model
    from .fit import FitOptions as FitOptions
    from .fit import FitResult as FitResult
    from .fit import fit_signal as fit_signal
    from .images import Images as Images
    from .run_state import Progress as Progress
    from .scene import Scene as Scene
    from .scene import load_scene as load_scene
    from .signals import read_signal as read_signal
    from .train import TrainOptions as TrainOptions
    from .train import TrainResult as TrainResult
    from .train import train_scene as train_scene

_HOMES = {
    "CompareResult": "compare",
    "compare": "compare",
    "ConvertOptions": "convert",
    "convert": "convert",
    "EditResult": "edit",
    "edit": "edit",
    "edit_model": "edit",
    "FitOptions": "fit",
    "FitResult": "fit",
    "Images": "images",
    "Scene": "scene",
    "load_scene": "scene",
    "Progress": "run_state",
    "fit_signal": "fit",
    "read_signal": "signals",
    "TrainOptions": "train",
    "TrainResult": "train",
    "train_scene": "train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = import_module(f".{_HOMES[name]}", __name__)
    # All at once: a function takes the place of the module of its name, which the import has put there.
    globals().update({other: getattr(module, other) for other, home in _HOMES.items() if home == _HOMES[name]})
    return globals()[name]
