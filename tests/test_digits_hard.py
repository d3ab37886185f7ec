"""The harder digits: made in whole numbers, from digits of their own split, the same on every machine."""

import hashlib

import numpy as np
import pytest
from scipy import ndimage
from sklearn.datasets import load_digits

from forgetless.data import load_images
from forgetless.data.sets.digits_hard import COPIES, SIZE, Dice, harder, mapped, random_maps
from forgetless.data.splits import Labelled

SCANS = load_digits().images[:40].astype(np.int64)
UPRIGHT = np.array([[256, 0], [0, 256]])


def test_the_splits_are_those_of_digits_some_copies_of_each():
    data, digits = load_images("digits-hard"), load_images("digits")
    assert (data.name, data.image_shape, data.num_classes) == ("digits-hard", (1, SIZE, SIZE), 10)
    for name, copies in COPIES.items():
        mine, others = getattr(data, name), getattr(digits, name)
        assert len(mine.labels) == copies * len(others.labels)
        assert mine.labels.tolist() == others.labels.repeat_interleave(copies).tolist()


def test_the_bytes_never_change():
    """Truth files know the data by its bytes, on every machine and with every version of numpy."""
    made = harder("test", Labelled(SCANS[:, None].astype(np.uint8), np.arange(40)))
    assert made.images.shape == (400, 1, SIZE, SIZE)
    assert hashlib.sha256(made.images.tobytes()).hexdigest()[:16] == "2c258b45fd42a4c7"


def test_copies_of_a_digit_differ_and_splits_are_drawn_apart():
    scans = Labelled(SCANS[:, None].astype(np.uint8), np.arange(40))
    validation, test = harder("validation", scans).images, harder("test", scans).images
    assert len(np.unique(test.reshape(400, -1), axis=0)) == 400
    assert not (validation == test).all((1, 2, 3)).any()


def test_an_upright_map_is_the_scan_in_the_middle():
    images = mapped(SCANS, np.repeat(UPRIGHT[None], 40, 0), np.zeros((40, 2), dtype=np.int64), SIZE)
    assert (images[:, 2:10, 2:10] == 15 * SCANS).all()
    assert images.sum() == 15 * SCANS.sum()


def test_maps_are_those_of_scipy():
    matrices, shifts = random_maps(Dice("test"), len(SCANS))
    images = mapped(SCANS, matrices, shifts, SIZE)
    for scan, matrix, shift, image in zip(SCANS, matrices, shifts, images, strict=True):
        matrix, centre = matrix / 256, np.full(2, (SIZE - 1) / 2)
        offset = np.full(2, 3.5) + shift / 512 - matrix @ centre
        padded = np.pad(scan, 20).astype(float)  # scipy interpolates to 0 outside only with a frame
        expected = 15 * ndimage.affine_transform(padded, matrix, offset + 20, (SIZE, SIZE), order=1)
        assert np.abs(image - expected).max() <= 0.5 + 1e-6


def test_maps_turn_shear_scale_and_shift_within_their_bounds():
    matrices, shifts = random_maps(Dice("bounds"), 5000)
    determinants = np.linalg.det(matrices / 256)  # scale², as shearing and turning keep areas
    assert 0.75**2 - 0.02 < determinants.min() < 0.6
    assert 1.6 < determinants.max() < 1.3**2 + 0.02
    assert np.abs(shifts).max() == 768
    angles = np.degrees(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    assert -46 < angles.min() < -44
    assert 44 < angles.max() < 46


def test_dice_are_uniform_and_repeat():
    drawn = Dice("a").below(7, (700, 100))
    assert (drawn == Dice("a").below(7, (700, 100))).all()
    assert not (drawn == Dice("b").below(7, (700, 100))).all()
    assert np.bincount(drawn.ravel()) / drawn.size == pytest.approx(np.full(7, 1 / 7), abs=0.01)
