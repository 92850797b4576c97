"""The hash grid module: its table, its randomness, its state."""

import pytest
import torch
from helpers.native_levels import uniform

from polyfield.fields.encodings import HashGridEncoding, HashGridSpec
from polyfield.fields.ops import _cpu
from polyfield.fields.ops.adam import lazy_adam_
from polyfield.fields.ops.hash_encode import hash_encode, hash_value_and_jacobian

SPEC = HashGridSpec(levels=3, base_resolution=4, finest_resolution=16, log2_table_size=8)


def test_table_starts_uniform_in_the_published_range():
    table = HashGridEncoding(SPEC, torch.Generator().manual_seed(0)).table.detach()
    assert table.shape == (SPEC.entries, 2)
    assert 0.99e-4 < table.abs().max() <= 1e-4
    assert table.mean().abs() < 5e-6


def test_the_generator_alone_decides_the_table():
    one, two = (HashGridEncoding(SPEC, torch.Generator().manual_seed(3)).table for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, HashGridEncoding(SPEC, torch.Generator().manual_seed(4)).table)


def test_the_module_is_the_operator():
    encoding, x = HashGridEncoding(SPEC), uniform(20, 3, dtype=torch.float32)
    assert encoding.features == 6
    assert torch.equal(encoding(x), hash_encode(x, encoding.table, SPEC))
    for mine, theirs in zip(
        encoding.value_and_jacobian(x), hash_value_and_jacobian(x, encoding.table, SPEC), strict=True
    ):
        assert torch.equal(mine, theirs)
    encoding(x).sum().backward()
    assert encoding.table.grad is not None


def test_state_travels_through_a_state_dict():
    one, two = HashGridEncoding(SPEC), HashGridEncoding(SPEC)
    two.load_state_dict(one.state_dict())
    x = uniform(20, 3, dtype=torch.float32)
    assert torch.equal(one(x), two(x))


@pytest.mark.skipif(_cpu.level() == "reference", reason="the references read the table itself")
def test_without_gradients_bf16_reads_the_rounded_table_as_it_is_now():
    encoding, x = HashGridEncoding(SPEC, precision="bf16"), uniform(20, 3, dtype=torch.float32)
    assert torch.equal(encoding(x), hash_encode(x, encoding.table, SPEC))
    changes = [
        lambda: None,
        lambda: encoding.load_state_dict(HashGridEncoding(SPEC).state_dict()),
        lambda: encoding.table.detach().mul_(3.0),
        lambda: lazy_adam_(encoding.table.detach(), torch.ones_like(encoding.table), *moments, step=1, lr=0.1),
    ]
    moments = torch.zeros_like(encoding.table), torch.zeros_like(encoding.table)
    with torch.no_grad():
        for change in changes:
            change()
            assert torch.equal(encoding(x), hash_encode(x, encoding.table.half(), SPEC))
    exact = HashGridEncoding(SPEC)
    with torch.no_grad():
        assert torch.equal(exact(x), hash_encode(x, exact.table, SPEC))
