"""How does Adam move a parameter of which a step touches only some rows?

Source: Kingma and Ba 2015 (arXiv 1412.6980), algorithm 1, as torch.optim.Adam computes it; the row rule is that of
Mueller et al. 2022 (arXiv 2201.05989, section 4): a row whose gradient is exactly zero, such as a hash entry that no
sample fell on, keeps its value and its moments. Bias is corrected by the global step, so skipped steps still count.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from . import _cpu, _cuda, _library, _native


def lazy_adam_(
    parameter: Tensor,
    gradient: Tensor,
    m: Tensor,
    v: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-15,
    weight_decay: float = 0.0,
    skip_untouched: bool = True,
) -> None:
    """One step, in place on `parameter`, `m` and `v`.

    Rows are those of the first dimension. With `skip_untouched` a row whose gradient is all zero (either sign; NaN is
    not zero) stays as it is, moments included; without it the result is that of torch.optim.Adam.

    Args:
        parameter: (rows, ...) contiguous, float32 or float64.
        gradient: same shape and dtype; read only. May be sparse (COO) along the rows, with `skip_untouched`: then a
            step costs what its rows cost, not what the parameter would.
        m, v: first and second moments, same shape and dtype, contiguous; zeros before the first step.
        step: number of this step, counted from 1.
        lr: learning rate.
        betas: decay of the two moments, in [0, 1).
        eps: added to the root of the second moment. 1e-15 keeps rare rows moving at full rate (Mueller et al. 2022).
        weight_decay: L2 coefficient: `weight_decay * parameter` is added to the gradient. It acts on every row, so
            it excludes `skip_untouched`.
        skip_untouched: see above.

    Raises:
        ShapeError: the four tensors differ in shape, dtype or device, or one to be written is not contiguous.
        ConfigError: a number is out of range, or `weight_decay` and `skip_untouched` are both asked for.

    No gradients.
    """
    _check(parameter, gradient, m, v, step, lr, betas, eps)
    if weight_decay < 0:
        raise ConfigError(f"weight_decay must be at least 0; got {weight_decay}")
    if weight_decay != 0 and skip_untouched:
        raise ConfigError(
            f"weight_decay ({weight_decay}) pulls on every row, skip_untouched leaves some alone; "
            "set weight_decay=0 or skip_untouched=False"
        )
    if gradient.is_sparse and (gradient.sparse_dim() != 1 or not skip_untouched):
        raise ConfigError(
            f"a sparse gradient must be of rows (one sparse dimension; got {gradient.sparse_dim()}), "
            "and only with skip_untouched do the others stay"
        )
    with torch.no_grad():
        if gradient.is_sparse:
            gradient = gradient.coalesce()
            rows, values = gradient.indices()[0], gradient.values()
            _lazy_adam_of_rows(parameter, rows, values, m, v, step, lr, *betas, eps)
        else:
            _lazy_adam(parameter, gradient, m, v, step, lr, *betas, eps, weight_decay, skip_untouched)


def lazy_adam_reference(
    parameter: Tensor,
    gradient: Tensor,
    m: Tensor,
    v: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-15,
    weight_decay: float = 0.0,
    skip_untouched: bool = True,
) -> None:
    """`lazy_adam_` in plain torch, any device."""
    if parameter.numel() == 0:
        return
    with torch.no_grad():
        rows = parameter.shape[0] if parameter.dim() else 1
        touched = (gradient != 0).reshape(rows, -1).any(1) | (not skip_untouched)
        touched = touched.reshape([rows] + [1] * (parameter.dim() - 1)) if parameter.dim() else touched[0]
        g = gradient + weight_decay * parameter
        m_new = betas[0] * m + (1 - betas[0]) * g
        v_new = betas[1] * v + (1 - betas[1]) * g * g
        root = (v_new / (1 - betas[1] ** step)).sqrt() + eps
        moved = parameter - lr / (1 - betas[0] ** step) * m_new / root
        parameter.copy_(torch.where(touched, moved, parameter))
        m.copy_(torch.where(touched, m_new, m))
        v.copy_(torch.where(touched, v_new, v))


def _check(
    parameter: Tensor,
    gradient: Tensor,
    m: Tensor,
    v: Tensor,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    if parameter.dtype not in (torch.float32, torch.float64):
        raise ShapeError(f"parameter must be float32 or float64; got {parameter.dtype}")
    for name, tensor in (("gradient", gradient), ("m", m), ("v", v)):
        if tensor.shape != parameter.shape or tensor.dtype != parameter.dtype or tensor.device != parameter.device:
            raise ShapeError(
                f"{name} must be like parameter, {tuple(parameter.shape)} {parameter.dtype} on {parameter.device}; "
                f"got {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
            )
    for name, tensor in (("parameter", parameter), ("m", m), ("v", v)):
        if not tensor.is_contiguous():
            raise ShapeError(f"{name} is written in place and must be contiguous; got strides {tensor.stride()}")
    if step < 1:
        raise ConfigError(f"step counts from 1; got {step}")
    if not lr >= 0 or not eps >= 0 or not math.isfinite(lr):
        raise ConfigError(f"lr and eps must be finite and at least 0; got lr={lr}, eps={eps}")
    if not all(0 <= beta < 1 for beta in betas):
        raise ConfigError(f"betas must be in [0, 1); got {betas}")


def _update(
    parameter: Tensor,
    gradient: Tensor,
    m: Tensor,
    v: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    skip_untouched: bool,
) -> None:
    if parameter.numel() == 0:
        return
    if not _native.usable(parameter, gradient, m, v):
        lazy_adam_reference(
            parameter,
            gradient,
            m,
            v,
            step=step,
            lr=lr,
            betas=(beta1, beta2),
            eps=eps,
            weight_decay=weight_decay,
            skip_untouched=skip_untouched,
        )
        return
    rows = parameter.shape[0] if parameter.dim() else 1
    shape = (rows, parameter.numel() // rows)
    numbers = (float(lr), float(beta1), float(beta2), float(eps), float(weight_decay))
    name = f"pf_adam_update_{_cpu.suffix_of(parameter)}"
    values = (parameter, gradient.contiguous(), m, v)
    # 2048 blocks fill any GPU several times; each computes the corrections of the bias once.
    _native.call(name, *values, *shape, step, *numbers, skip_untouched, over=rows, most_blocks=2048)
    torch.autograd.graph.increment_version([parameter, m, v])


def _update_rows(
    parameter: Tensor,
    rows: Tensor,
    gradient: Tensor,
    m: Tensor,
    v: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    if gradient.numel() == 0:
        return
    if _cuda.usable(parameter, gradient, m, v) or not _cpu.usable(parameter, gradient, m, v):
        there = (rows >= 0) & (rows < parameter.shape[0])
        rows, gradient = rows[there], gradient[there]
        own, own_m, own_v = (tensor[rows] for tensor in (parameter, m, v))
        _update(own, gradient, own_m, own_v, step, lr, beta1, beta2, eps, 0.0, True)
        for tensor, values in ((parameter, own), (m, own_m), (v, own_v)):
            tensor[rows] = values
        return
    shape = (parameter.shape[0], parameter.numel() // parameter.shape[0])
    name = f"pf_adam_of_rows_{_cpu.suffix_of(parameter)}"
    values = (parameter, gradient.contiguous(), m, v)
    numbers = (float(lr), float(beta1), float(beta2), float(eps))
    _cpu.call(name, rows.contiguous(), len(rows), *values, *shape, step, *numbers)
    torch.autograd.graph.increment_version([parameter, m, v])


_lazy_adam_of_rows = _library.define(
    "lazy_adam_of_rows_(Tensor(a!) parameter, Tensor rows, Tensor gradient, Tensor(b!) m, Tensor(c!) v, int step,"
    " float lr, float beta1, float beta2, float eps) -> ()",
    _update_rows,
    lambda *arguments: None,
)
_lazy_adam = _library.define(
    "lazy_adam_(Tensor(a!) parameter, Tensor gradient, Tensor(b!) m, Tensor(c!) v, int step, float lr, float beta1,"
    " float beta2, float eps, float weight_decay, bool skip_untouched) -> ()",
    _update,
    lambda *arguments: None,
)
