"""What does a file of `polyfield fit` hold, as `polyfield info` says it?

Names of facts are those of `polyfield fit --json`. The history in the file is hostile: what is no number or no plain
text is left out.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from ...fields.errors import FormatError
from .fit import TARGETS, describe_quality, describe_size
from .progress import clock

SHOWN = (
    *("activation", "layout", "decoder", "kernels", "levels", "channels", "finest_resolution"),
    *("width", "hidden_layers", "modulation"),
)
"""Settings that the text shows, beside the frequency; the JSON has all."""


def examine_fit(path: Path) -> dict[str, Any]:
    """Load a fit and say all about it, as JSON values.

    Raises:
        FormatError: damaged, or a file of another kind.
    """
    from ...fields.formats.model_file import read_header
    from ...fields.implicit import ImplicitModel
    from ...fields.implicit.model import FILE_KIND
    from ...fields.optim.fit import FitQuality

    kind = read_header(path).get("kind")
    if kind != FILE_KIND:
        raise FormatError(f"{path} holds a {kind!r:.60}; expected a folder of photos, or what 'polyfield fit' wrote")
    model = ImplicitModel.load(path)
    config, told = dataclasses.asdict(model.network.config), model.provenance
    frequency, surface = _frequency(config), model.signal == "surface"
    bytes_ = path.stat().st_size
    mesh = told["mesh"] if isinstance(told.get("mesh"), dict) else {}
    trusted, why = mesh.get("signed_distance_trusted", True) or model.target == "udf", _text(mesh.get("explanation"))
    return {
        "file": str(path),
        "kind": "fit",
        "field": model.kind,
        "signal": model.signal,
        "size": list(model.size),
        "channels": config["outputs"],
        "fps": model.fps,
        "range": [model.low, model.high] if model.signal == "volume" else None,
        "target": model.target if surface else None,
        "cube": model.cube if surface else None,
        "mesh": mesh or None,
        **{name: _number(told.get(name)) for name in (*FitQuality._fields, "grid")},
        "bytes": bytes_,
        "bits_per_cell": None if surface else 8 * bytes_ / math.prod(model.size),
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "frequency": None if frequency is None else {frequency: config[frequency]},
        "config": config,
        "input": _text(told.get("input")),
        "steps": _number(told.get("steps")),
        "fit_seconds": _number(told.get("seconds")),
        "polyfield": _text(told.get("polyfield")),
        "torch": _text(told.get("torch")),
        "warnings": [] if trusted or why is None else [why],
    }


def describe_fit(facts: dict[str, Any]) -> str:
    """The facts as text, one line each."""
    signal, config = facts["signal"], facts["config"]
    of = f"{facts['field']} field of {'an' if signal == 'image' else 'a'} {signal}"
    measured = any(facts[name] is not None for name in ("psnr", "iou", "distance_error"))
    names = [n for n in config if n in SHOWN or n in (facts["frequency"] or ())]
    shown = [f"{n} {v:g}" if isinstance(v := config[n], float) else f"{n} {v}" for n in names if config[n] is not None]
    rows = [("fit", of if facts["target"] is None else f"{of}, {TARGETS[facts['target']]}"), _extent(facts)]
    rows += [
        ("quality", describe_quality(facts, facts["grid"]) if measured else "not known"),
        ("file", describe_size(facts)),
        ("parameters", f"{facts['parameters']:,}"),
        ("settings", ", ".join(shown)),
    ]
    if facts["input"] is not None:
        rows.append(("input", facts["input"]))
    if facts["steps"] is not None and facts["fit_seconds"] is not None:
        rows.append(("learned", f"{facts['steps']:.0f} steps in {clock(facts['fit_seconds'])}"))
    if facts["polyfield"] is not None and facts["torch"] is not None:
        rows.append(("written by", f"polyfield {facts['polyfield']}, torch {facts['torch']}"))
    rows += [("warning", text) for text in facts["warnings"]]
    return "\n".join(f"{name:<14} {text}" for name, text in rows)


def _extent(facts: dict[str, Any]) -> tuple[str, str]:
    """How large it is, by what counts for its kind."""
    if facts["cube"] is not None:
        x, y, z, side = facts["cube"]
        return "cube", f"side {side:.4g}, corner ({x:.4g}, {y:.4g}, {z:.4g}), in the mesh's own units"
    text = f"{'x'.join(map(str, facts['size']))}, {facts['channels']} channels"
    if facts["fps"] is not None:
        text += f", {facts['fps']:g} frames per second"
    if facts["range"] is not None:
        text += ", values {:.4g} to {:.4g}".format(*facts["range"])
    return "size", text


def _frequency(config: dict[str, Any]) -> str | None:
    """The setting that FreSh chooses, by the layers: those that `cam` modulates may be of any family."""
    from ...fields.implicit import KINDS

    layers = (config.get("activation"), config.get("encoding"))
    for family in KINDS.values():
        if layers == (family.settings.get("activation"), family.settings.get("encoding", "none")):
            return family.frequency
    return None


def _number(value: Any) -> float | None:
    """`value` if it is a finite number of a usual size."""
    return value if type(value) in (int, float) and abs(value) < 1e300 else None


def _text(value: Any) -> str | None:
    """`value` if it is text that cannot steer a terminal."""
    return value if isinstance(value, str) and value.isprintable() else None
