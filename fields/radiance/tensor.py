"""The tensor radiance field: what a scene is when its grid of features is a sum of products of planes and lines.

TensoRF (Chen et al. 2022, arXiv 2203.09517) in its VM form (matrices times vectors) or CP form (three vectors): coarse
to fine, and with the box drawn in round what turns out to be occupied (`factored`). Unlike the paper's, the tensors of
density and of appearance are one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..encodings.factored_grid import vector_matrix, vectors
from ..ops.factored_encode import FactoredGridSpec
from .factored import FactoredField, FactoredFieldConfig

FORMS = {"vm": vector_matrix, "cp": vectors}
RANGE = 0.17
"""Texels start uniform in plus or minus this: the deviation, 0.1, is that of TensoRF's normal ones."""


@dataclass(frozen=True, kw_only=True)
class TensorFieldConfig(FactoredFieldConfig):
    """What a `TensorField` is made of, and what it has grown to."""

    form: Literal["vm", "cp"] = "vm"
    """Matrices times vectors, or three vectors."""
    components: int = 24
    """Of each product: a VM form has three, a CP form one."""

    @property
    def spec(self) -> FactoredGridSpec:
        return FORMS[self.form](self.resolution, self.components)


class TensorField(FactoredField):
    """Final. See the module."""

    config: TensorFieldConfig

    def __init__(self, config: TensorFieldConfig | None = None, *, seed: int = 0) -> None:
        super().__init__(config or TensorFieldConfig(), -RANGE, RANGE, seed=seed)
