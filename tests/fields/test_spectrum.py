"""Spectra put waves where they belong, their distance is a distance, and the nearest candidate is taken."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyfield.fields.errors import ConfigError, ShapeError
from polyfield.fields.spectrum import FrequencyChoice, choose_frequency, spectrum, spectrum_distance


def wave(height: int, width: int, rows: float, columns: float) -> torch.Tensor:
    """(1, H, W, 1): `rows` cycles down the image and `columns` across."""
    y, x = torch.arange(height)[:, None] / height, torch.arange(width)[None, :] / width
    return torch.cos(2 * math.pi * (rows * y + columns * x))[None, :, :, None]


@pytest.mark.parametrize(
    ("image", "bin_"),
    [
        (wave(64, 64, 0, 5), 5),
        (wave(64, 64, 7, 0), 7),
        (wave(64, 64, 3, 4), 5),
        (wave(64, 64, 3, -4), 5),  # the quadrant that the paper's form does not see
        (wave(64, 64, -3, 4), 5),
        (wave(32, 64, 0, 6), 6),
        (wave(32, 64, 3, 0), 6),  # 3 cycles on half the length: the same wave, turned
        (wave(63, 65, 0, 5), 5),
    ],
)
def test_a_wave_is_in_the_bin_of_its_length(image, bin_):
    found = spectrum(image, bins=20)
    assert found.shape == (1, 20)
    torch.testing.assert_close(found.sum(), torch.tensor(1.0))
    assert int(found.argmax()) == bin_ - 1
    assert found[0, bin_ - 1] > 0.98


@given(st.integers(4, 24), st.integers(1, 3), st.integers(0, 5))
def test_the_papers_form_is_its_double_sum(side, channels, seed):
    image = torch.rand(1, side, side, channels, generator=torch.Generator().manual_seed(seed))
    magnitude = torch.fft.fft2(image[0].movedim(2, 0)).abs().sum(0)
    expected = torch.zeros(6)
    for i in range(side):
        for j in range(side):
            if 1 <= i + j <= min(6, side - 1):
                expected[i + j - 1] += magnitude[i, j]
    torch.testing.assert_close(spectrum(image, bins=6, form="paper")[0], expected / expected.sum())


def test_brightness_and_contrast_do_not_count():
    image = torch.rand(1, 20, 30, 3)
    torch.testing.assert_close(spectrum(0.3 * image + 5), spectrum(image), rtol=1e-3, atol=1e-4)


def test_an_image_without_detail_has_no_spectrum():
    assert spectrum(torch.zeros(1, 8, 8, 3)).abs().max() == 0
    assert spectrum(torch.rand(1, 1, 1, 3)).abs().max() == 0


@given(st.integers(0, 40), st.integers(0, 40))
def test_the_distance_of_two_lines_is_their_distance(a, b):
    lines = torch.eye(41)
    assert float(spectrum_distance(lines[a], lines[b])) == abs(a - b)


@pytest.mark.parametrize("search", [False, True])
def test_the_candidate_that_looks_like_the_target_is_taken(search):
    seen = []

    def untrained(candidate, seed):
        seen.append((candidate, seed))
        noise = 0.2 * torch.rand(48, 48, 1, generator=torch.Generator().manual_seed(seed))
        return wave(48, 48, 0, candidate)[0] + noise

    choice = choose_frequency(
        wave(48, 48, 11, 0)[0], untrained, [float(k) for k in range(1, 21)], models=2, bins=24, search=search
    )
    assert choice.chosen == 11
    assert choice.distances[choice.candidates.index(11.0)] == min(choice.distances)
    assert {seed for _, seed in seen} == {0, 1}
    assert len(seen) == 2 * len(choice.candidates)
    assert len(choice.candidates) == (20 if not search else 9)
    assert list(choice.candidates) == sorted(choice.candidates)


def test_progress_ends_at_all():
    calls = []
    choose_frequency(
        torch.rand(8, 8, 1),
        lambda c, s: torch.rand(8, 8, 1),
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        models=2,
        search=True,
        report=lambda done, total: calls.append((done, total)),
    )
    assert all(done <= total for done, total in calls)
    assert [done for done, _ in calls] == list(range(2, 2 * len(calls) + 1, 2))


def test_models_that_are_not_finite_are_never_nearest():
    choice = choose_frequency(
        torch.rand(16, 16, 1),
        lambda c, s: torch.full((16, 16, 1), math.nan) if c == 1 else torch.rand(16, 16, 1),
        [1.0, 2.0],
        models=1,
    )
    assert choice.chosen == 2
    assert choice.distances[0] == math.inf


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ShapeError, match=r"images must be \(B, H, W, C\)"):
        spectrum(torch.rand(4, 4, 3))
    with pytest.raises(ConfigError, match="bins must be at least 1; got 0"):
        spectrum(torch.rand(1, 4, 4, 3), bins=0)
    with pytest.raises(ConfigError, match="there must be candidates and models; got 0 and 10"):
        choose_frequency(torch.rand(4, 4, 1), lambda c, s: torch.rand(4, 4, 1), [])


def test_several_pictures_of_different_sizes_count_alike():
    seen = wave(48, 48, 0, 5)[0], wave(32, 48, 0, 9)[0]

    def untrained(candidate, seed):
        return [wave(picture.shape[0], picture.shape[1], 0, candidate)[0] for picture in seen]

    choice = choose_frequency(seen, untrained, [3.0, 6.0, 12.0], models=1)
    assert choice.chosen == 6
    assert choice.distances == pytest.approx((4, 2, 5), abs=0.2)


def test_a_choice_survives_json():
    choice = FrequencyChoice(2.0, (1.0, 2.0), (math.inf, 0.5), 0.1)
    assert FrequencyChoice.from_dict(json.loads(json.dumps(choice.as_dict(), allow_nan=False))) == choice
    for change in ({"chosen": 3}, {"chosen": math.nan}, {"distances": [1]}, {"candidates": 4}, {"seconds": "long"}):
        with pytest.raises(ConfigError, match="is no choice of a frequency"):
            FrequencyChoice.from_dict(choice.as_dict() | change)
    with pytest.raises(ConfigError, match="is no choice of a frequency"):
        FrequencyChoice.from_dict([1])


def test_a_picture_without_detail_chooses_nothing_and_does_not_count():
    flat, detailed = torch.full((32, 32, 3), 0.3), wave(32, 32, 0, 4)[0]

    def untrained(candidate, seed):
        return [wave(32, 32, 0, candidate)[0]] * 2

    choice = choose_frequency([flat, detailed], untrained, [2.0, 4.0, 8.0], models=1)
    assert (choice.chosen, min(choice.distances)) == (4.0, pytest.approx(0, abs=1e-3))
    nothing = choose_frequency([flat, flat], untrained, [2.0, 4.0], models=1)
    assert nothing[:3] == (None, (), ())
    assert FrequencyChoice.from_dict(json.loads(json.dumps(nothing.as_dict()))) == nothing


def test_models_of_which_none_is_finite_choose_nothing():
    choice = choose_frequency(wave(16, 16, 0, 4)[0], lambda c, s: torch.full((16, 16, 1), math.nan), [1.0, 2.0])
    assert choice.chosen is None
    assert FrequencyChoice.from_dict(choice.as_dict()) == choice
