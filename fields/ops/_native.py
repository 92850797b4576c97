"""Which native kernels serve a tensor, those of the CPU library or those of CUDA? Operators whose kernels take the same
arguments on both ask here; the others ask `_cpu` and `_cuda`."""

from __future__ import annotations

from torch import Tensor

from . import _cpu, _cuda


def usable(*tensors: Tensor | None) -> bool:
    """True where native kernels serve all of these tensors; else the torch reference runs."""
    return _cuda.usable(*tensors) or _cpu.usable(*tensors)


def new_empty(like: Tensor, *shape: int) -> Tensor:
    """A tensor of the dtype and device of `like` whose values nobody has set; a large one on a CPU on huge pages, where
    the system grants them: writing 64 MB on fresh pages of 4 KiB takes longer than most kernels do."""
    out = like.new_empty(shape)
    _cpu.advise_huge_pages(out, in_use=False)
    return out


def call(name: str, *arguments: Tensor | int | float | bool | None, over: int, most_blocks: int = 2**31 - 1) -> int:
    """Call the function of that name for the device of the tensors.

    Args:
        over: how many elements a CUDA kernel gives a thread each.
        most_blocks: enough of them where the kernel loops.

    Returns:
        What the CPU function returns; 0 from CUDA, whose kernels are not waited for.
    """
    if _cuda.usable(*(value for value in arguments if isinstance(value, Tensor))):
        _cuda.call(name, _cuda.one_thread_each(over, most_blocks), *arguments)
        return 0
    return _cpu.call(name, *arguments)
