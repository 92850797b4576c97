"""Which fields can an image, a film, a volume or a mesh become, and with which settings does each learn?

Settings are those of the papers and of the equal-parameter comparison of neurofield (about 200 thousand parameters);
grids are sized by the signal. `frequency` names the setting that decides which detail a field shows before it has
learned anything, and what to try for it (FreSh, Kania et al. 2025, tables of candidates).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ..networks.coordinate import CoordinateNetwork, CoordinateNetworkConfig
from .grid import GridNetwork, GridNetworkConfig
from .kernels import place_kernels
from .neurbf import NeurbfConfig, NeurbfNetwork
from .signal import GridSignal
from .surface import MeshSignal

Config = CoordinateNetworkConfig | GridNetworkConfig | NeurbfConfig
Network = CoordinateNetwork | GridNetwork | NeurbfNetwork


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One family."""

    network: Callable[..., Network] = CoordinateNetwork
    config: type = CoordinateNetworkConfig
    settings: dict[str, Any]
    """What differs from the configuration's defaults."""
    lr: dict[str, float]
    """Learning rates of Adam, by the beginning of the parameter's name; "" for all others."""
    adam: dict[str, Any] = field(default_factory=dict)
    """What else differs from the defaults of `FitTask`'s Adam."""
    batch: int = 1 << 14
    """Points per step: what two cores do in about a tenth of a second."""
    frequency: str | None = None
    """The setting that FreSh chooses, ..."""
    candidates: tuple[float, ...] = ()
    """... from these."""


SURFACE_FINEST, SURFACE_LOG2_ENTRIES = 1024, 18
"""Cells along the cube of a hash grid's finest level, and entries of a level."""
SURFACE_VALUES = 856_000
"""Of a NeuRBF of a surface (the paper's)."""
_OMEGAS = tuple(float(10 * k) for k in range(1, 21))
_SINES = {"activation": "sine", "output": "centred"}

KINDS: dict[str, Kind] = {
    "siren": Kind(
        settings=_SINES,
        lr={"": 5e-4},
        frequency="first_omega",
        candidates=_OMEGAS,
    ),
    "finer": Kind(
        settings={**_SINES, "activation": "finer"},
        lr={"": 5e-4},
        frequency="first_bias",
        candidates=tuple(round(0.2 * k, 1) for k in range(16)),
    ),
    "wire": Kind(
        settings={"activation": "wire", "first_omega": 20.0, "hidden_omega": 20.0, "scale": 10.0, "width": 181},
        lr={"": 3e-3},
        frequency="first_omega",
        candidates=_OMEGAS,
    ),
    "gauss": Kind(
        settings={"activation": "gauss"},
        lr={"": 1e-3},
        frequency="scale",
        candidates=_OMEGAS,
    ),
    "fourier": Kind(
        settings={"activation": "relu", "encoding": "fourier", "hidden_layers": 3, "output": "sigmoid"},
        lr={"": 1e-3},
        frequency="sigma",
        candidates=tuple(float(k) for k in range(1, 21)),
    ),
    "pe": Kind(
        settings={"activation": "relu", "encoding": "octaves"},
        lr={"": 1e-3},
        frequency="octaves",
        candidates=tuple(range(3, 13)),
    ),
    "hash": Kind(
        network=GridNetwork,
        config=GridNetworkConfig,
        settings={"layout": "hash", "levels": 16, "channels": 2},
        lr={"": 1e-2},
        batch=1 << 16,
    ),
    "rbf": Kind(
        network=GridNetwork,
        config=GridNetworkConfig,
        settings={"layout": "hash", "levels": 16, "channels": 2, "decoder": "rbf"},
        # Armadillo (200 steps, 128^3): IoU .99805; with 1e-2 and 3e-2 .99401. On images it makes no difference.
        lr={"": 1e-2, "network.weight": 3e-2, "network.log_beta": 0.3},
        batch=1 << 16,
    ),
    "planes": Kind(
        network=GridNetwork,
        config=GridNetworkConfig,
        settings={"layout": "planes"},
        lr={"": 1e-2},
        batch=1 << 16,
    ),
    "tensor": Kind(
        network=GridNetwork,
        config=GridNetworkConfig,
        settings={"layout": "lines", "channels": 128},
        lr={"": 1e-2},
        batch=1 << 16,
    ),
    "neurbf": Kind(
        network=NeurbfNetwork,
        config=NeurbfConfig,
        settings={},
        lr={"": 5e-3, "first": 1e-2, "network": 1e-2},
        adam={"betas": (0.9, 0.99), "epsilon": 1e-15},
    ),
}
"""Name on the command line and in files -> family."""


def modulated(kind: str) -> Kind:
    """CAM's grids over the layers of another family of networks."""
    family = KINDS[kind]
    return replace(family, settings={**family.settings, "modulation": 32}, lr={**family.lr, "grids": 1e-2})


KINDS["cam"] = modulated("fourier")


def config_for(kind: str | Kind, signal: GridSignal | MeshSignal) -> Config:
    """The settings of a family for a signal."""
    family = KINDS[kind] if isinstance(kind, str) else kind
    shape = {"inputs": len(signal.size), "outputs": signal.channels, "aspect": signal.aspect}
    config = family.config(**shape, **family.settings)
    if isinstance(config, NeurbfConfig):
        return _neurbf_for(config, signal)
    if isinstance(config, CoordinateNetworkConfig) and len(signal.size) == 3:
        # By three planes cam has .4 dB more of a film than by one (carphone, 400 steps of 4096 points).
        config = replace(config, modulated_by="xyz")
    if isinstance(signal, MeshSignal):  # distances are negative inside, and know no cells
        if isinstance(config, CoordinateNetworkConfig):
            return replace(config, output="none")
        finest = SURFACE_FINEST if config.layout == "hash" else SURFACE_FINEST // 4
        return replace(config, finest_resolution=finest, log2_table_size=SURFACE_LOG2_ENTRIES)
    if isinstance(config, GridNetworkConfig):
        # Texels no finer than the signal, and fewer values than it has: a fit of more would be a copy. Planes take half
        # the resolution; 16 hash tables of two channels 2/3 of a value per cell (2^13 entries for a Kodak image).
        longest = max(signal.size[:2]) if signal.kind == "video" else max(signal.size)
        finest = min(max(longest // 2 if config.layout == "planes" else longest, 16), 1024)
        entries = min(max(round(math.log2(signal.cells / 48)), 8), 22) if signal.cells > 48 else 8
        config = replace(config, finest_resolution=finest, base_resolution=min(16, finest), log2_table_size=entries)
    return config


def _neurbf_for(config: NeurbfConfig, signal: GridSignal | MeshSignal) -> NeurbfConfig:
    """As many values as a hash field of the signal has; of a surface the paper's settings, but for the network's first
    layer: with its multipliers up to 300 a sphere has an IoU of .49 after 100 steps, with 10 of .68."""
    if isinstance(signal, MeshSignal):
        grid = {"levels": 16, "channels": 1, "finest_resolution": SURFACE_FINEST, "log2_table_size": 14}
        config = replace(config, features=16, neighbours=8, frequencies=(1.0, 8.0), **grid)
        return config.with_kernels(SURFACE_VALUES, most=signal.cells)
    equal = config_for("hash", signal)
    assert isinstance(equal, GridNetworkConfig)
    return config.with_values(equal.values, most=signal.cells)


def build(kind: str, config: Config, seed: int = 0, signal: GridSignal | MeshSignal | None = None) -> Network:
    """An untrained network of a family: points (N, D) in [0, 1] -> values (N, C).

    Args:
        signal: where given, families that have kernels place them by it; else they lie anywhere.
    """
    if signal is not None and isinstance(config, NeurbfConfig):
        return NeurbfNetwork(config, seed=seed, kernels=place_kernels(signal, config.kernels, seed=seed))
    return KINDS[kind].network(config, seed=seed)
