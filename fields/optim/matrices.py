"""The matrices of a network that are moved by Muon, in stacks of one shape, beside Adam, which moves the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..ops.muon import Matrix, muon_


class MatrixStacks:
    """Matrices with their momentum.

    Attributes:
        momentum: (B, R, C) of each stack, named by its shape; the state that a checkpoint needs.
    """

    def __init__(self, matrices: Sequence[tuple[Matrix, float]]) -> None:
        """Args:
        matrices: with their learning rates; those of one shape have one rate.
        """
        self._stacks: dict[str, tuple[list[Matrix], float]] = {}
        for matrix, lr in matrices:
            name = "x".join(map(str, matrix.shape))
            self._stacks.setdefault(name, ([], lr))[0].append(matrix)
        self.momentum = {
            name: torch.zeros(len(stack), *stack[0].shape, device=stack[0].parameter.device)
            for name, (stack, _) in self._stacks.items()
        }
        self._gradients: dict[str, Tensor] = {}

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Take the matrices' gradients out of their parameters', which become zero there: Adam, whose moments of them
        are zero, then leaves them as they are."""
        for name, (stack, _) in self._stacks.items():
            found = []
            for matrix in stack:
                grad = matrix.parameter.grad
                assert grad is not None
                matrix.parameter.grad = grad = grad.contiguous()
                found.append(matrix.of(grad).clone())
                matrix.of(grad).zero_()
            self._gradients[name] = torch.stack(found)

    def descend(self, lr_scale: float, precision: Literal["fp32", "bf16"]) -> None:
        """A step along the gradients taken last."""
        for name, (stack, lr) in self._stacks.items():
            views = [matrix.of(matrix.parameter.detach()) for matrix in stack]
            muon_(views, self._gradients[name], self.momentum[name], lr=lr * lr_scale, precision=precision)
