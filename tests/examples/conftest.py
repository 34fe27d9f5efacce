"""Makes the examples importable; a tiny archive for those that read one."""

import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))


@pytest.fixture
def slope_archive(tmp_path):
    """A folder with a UCR archive of two sets, Slope and Tilt: 20 + 10 series, two classes by the sign of the slope."""
    for name in ("Slope", "Tilt"):
        folder = tmp_path / "data" / "UCRArchive_2018" / name
        folder.mkdir(parents=True)
        for split, count in (("TRAIN", 20), ("TEST", 10)):
            labels = np.where(np.arange(count) % 2, 1, -1)
            values = labels[:, None] * np.arange(12) + np.random.default_rng(count).normal(size=(count, 12))
            np.savetxt(folder / f"{name}_{split}.tsv", np.column_stack([labels, values]), delimiter="\t", fmt="%.4f")
    return tmp_path / "data"
