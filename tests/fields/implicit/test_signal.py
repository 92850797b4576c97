"""A signal's cells stand where they should, and blocks hold all of them once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyfield.fields.errors import ConfigError
from polyfield.fields.implicit import GridSignal
from polyfield.fields.implicit.signal import cell_centres, grid_points


def test_cells_stand_at_their_centres_with_x_fastest():
    points = grid_points((4, 2), 0, 8)
    torch.testing.assert_close(points[:5, 0], torch.tensor([0.125, 0.375, 0.625, 0.875, 0.125]))
    torch.testing.assert_close(points[:5, 1], torch.tensor([0.25, 0.25, 0.25, 0.25, 0.75]))
    torch.testing.assert_close(grid_points((4, 2, 3), 8, 1), torch.tensor([[0.125, 0.25, 0.5]]))


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(1, 70))
def test_blocks_hold_every_cell_once(x, y, z, block):
    values = torch.arange(x * y * z * 2, dtype=torch.float32).reshape(z, y, x, 2)
    signal = GridSignal("volume", values)
    points, found = (torch.cat(parts) for parts in zip(*signal.blocks(block), strict=True))
    assert torch.equal(found, values.reshape(-1, 2))
    assert torch.equal(points, cell_centres(torch.arange(signal.cells), (x, y, z)))
    index = (points * torch.tensor([x, y, z])).long()
    assert torch.equal(values[index[:, 2], index[:, 1], index[:, 0]], found)


def test_bytes_are_shares_of_255():
    signal = GridSignal("image", torch.tensor([[[0, 51, 255]]], dtype=torch.uint8))
    torch.testing.assert_close(signal.at(torch.tensor([0])), torch.tensor([[0.0, 0.2, 1.0]]))


def test_the_longest_axis_has_length_one():
    assert GridSignal("image", torch.zeros(2, 4, 3)).aspect == (1.0, 0.5)
    assert GridSignal("volume", torch.zeros(8, 4, 2, 1)).aspect == (0.25, 0.5, 1.0)
    assert GridSignal("video", torch.zeros(500, 2, 4, 3)).aspect == (1.0, 0.5, 1.0)  # time has no length


@pytest.mark.parametrize(
    ("kind", "values", "text"),
    [
        ("image", torch.zeros(2, 2), "signals of kind image have 3 axes"),
        ("image", torch.zeros(0, 2, 3), "none empty"),
        ("volume", torch.zeros(2, 2, 2, 1, dtype=torch.float64), "uint8 or float32; got torch.float64"),
    ],
)
def test_what_is_no_signal_is_refused(kind, values, text):
    with pytest.raises(ConfigError, match=text):
        GridSignal(kind, values)
