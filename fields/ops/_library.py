"""How an operator is made known to torch: schema, implementation, fake form and autograd, in one call.

One `torch.library` namespace, `polyfield`. The implementation given here serves every device (native CPU kernels where
the library is loaded, the torch reference elsewhere); CUDA kernels are registered under their own key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

LIBRARY = torch.library.Library("polyfield", "DEF")


def define(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Any:
    """Define `polyfield::<schema>` and return the callable packet `torch.ops.polyfield.<name>`.

    Args:
        schema: e.g. "hash_encode(Tensor x, Tensor table) -> Tensor"; mutated tensors are marked `Tensor(a!)`.
        implementation: called with real tensors below autograd; must return fresh tensors.
        fake: called with fake tensors; returns empty ones of the right shape, dtype and device.
        setup_context, backward: as in `torch.library.register_autograd`; leave out for operators without gradients.
    """
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"polyfield::{name}", fake, lib=LIBRARY)
    if backward is not None:
        torch.library.register_autograd(f"polyfield::{name}", backward, setup_context=setup_context, lib=LIBRARY)
    return getattr(torch.ops.polyfield, name)
