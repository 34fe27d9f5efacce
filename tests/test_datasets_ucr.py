"""`ucr` from files in the archive's own layout and in aeon's; `prepare` against numbers computed by hand."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

import keras_ssd.datasets
from builders import assert_nothing_is_left, make_builder, prepare
from keras_ssd.datasets.ucr import ucr_dataset_builder

NAN = float("nan")
# Label and series of each row; the test split is longer, and one class is in it only.
ROWS = {
    "TRAIN": [("10", [0.5, 1.5, -2.0]), ("-1", [NAN, 0.25, NAN]), ("2", [1.0, NAN, NAN])],
    "TEST": [("2", [3.0, 4.0, 5.0, 6.0]), ("3", [-0.125, NAN, 7.0, NAN])],
}
CLASSES = ["-1", "2", "3", "10"]


def text_tsv(rows):
    return "".join("\t".join([label, *(str(one).replace("nan", "NaN") for one in row)]) + "\n" for label, row in rows)


def text_ts(rows):
    """As aeon writes it: a header, `?` for a missing value, and shorter series without a tail."""
    lines = ["#About the data: 1,2:3", "@problemName Coffee", "@classLabel true -1 2 3 10", "@data"]
    for label, row in rows:
        length = np.flatnonzero(~np.isnan(row))[-1] + 1
        lines.append(",".join(str(one).replace("nan", "?") for one in row[:length]) + f":{label}")
    return "\n".join(lines) + "\n"


TEXT = {"tsv": text_tsv, "ts": text_ts}


def write(folder, kind="tsv", rows=ROWS):
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("TRAIN", "TEST"):
        (folder / f"Coffee_{split}.{kind}").write_text(TEXT[kind](rows[split]))


def coffee(tmp_path):
    return make_builder("ucr/coffee", tmp_path)


def assert_as_written(builder):
    assert builder.info.features["label"].names == CLASSES
    for split, rows in ROWS.items():
        expected = {}
        for label, row in rows:
            padded = np.array(row + [NAN] * (4 - len(row)), dtype="float32")[:, None]
            expected[padded.tobytes()] = CLASSES.index(label)
        found = {row["series"].tobytes(): row["label"] for row in builder.as_data_source(split.lower())}
        assert found == expected
        assert {row["series"].shape for row in builder.as_data_source(split.lower())} == {(4, 1)}


@pytest.mark.parametrize(
    ("kind", "place", "given"),
    [
        ("tsv", "UCRArchive_2018/Coffee", "."),
        ("ts", "UCRArchive_2018/Coffee", "UCRArchive_2018"),
        ("tsv", "UCRArchive_2018/Coffee", "UCRArchive_2018/Coffee"),
        ("ts", "Coffee", "."),
    ],
    ids=["parent", "archive", "data set", "data set's parent"],
)
def test_finds_and_reads_the_data_in_a_given_folder(tmp_path, kind, place, given):
    write(tmp_path / place, kind)
    assert_as_written(prepare(coffee(tmp_path), tmp_path / given))
    assert_as_written(coffee(tmp_path))  # the names of the classes are kept


LONG = "1" + "0" * 30


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (
            [LONG + "2", LONG + "1", "20190102", "20190101", "0.1234568", "0.1234567", "10", "1e1", "9", "-2.50"],
            ["-2.5", "0.1234567", "0.1234568", "9", "10", "20190101", "20190102", LONG + "1", LONG + "2"],
        ),
        (["1", "1.0", "1.0000000e+00", "+1", "0", "-0.0", ".0", "1e-3", "0.001", ".001"], ["0", "0.001", "1"]),
        (["007", "7", "1_1", "11", "inf", "Infinity"], ["007", "11", "1_1", "7", "Infinity", "inf"]),
    ],
    ids=["numbers", "equal numbers", "words"],
)
def test_labels_are_equal_only_if_their_numbers_are_equal(tmp_path, labels, names):
    write(tmp_path, rows={split: [(label, [0.5, 1.0]) for label in labels] for split in ROWS})
    assert prepare(coffee(tmp_path), tmp_path).info.features["label"].names == names


def test_the_archives_older_writing_is_read_alike(tmp_path):
    """Labels as floats, and a tab, which is no value, at the end of each line."""
    write(tmp_path, rows={split: [(f"{float(label):.7e}", row) for label, row in ROWS[split]] for split in ROWS})
    for path in tmp_path.iterdir():
        path.write_text(path.read_text().replace("\n", "\t\r\n"))
    assert_as_written(prepare(coffee(tmp_path), tmp_path))


@pytest.mark.parametrize("given", ["nothing", "others", "test split missing"])
def test_missing_data_error_says_where_to_get_the_data(tmp_path, given):
    folder = tmp_path / "given"
    if given == "others":
        (folder / "Beef").mkdir(parents=True)
    if given == "test split missing":
        write(folder / "Coffee")
        (folder / "Coffee" / "Coffee_TEST.tsv").unlink()
    builder = coffee(tmp_path)
    with pytest.raises(FileNotFoundError, match="password.*aeon.datasets.load_classification.*Received: ") as error:
        prepare(builder, folder)
    assert f"Coffee/Coffee_{'TEST' if 'test' in given else 'TRAIN'}.tsv" in str(error.value)
    assert not builder.data_path.exists()


DAMAGE = {
    "truncated": ("tsv", lambda text: text[:-10], "line 2: .* 'Na' .* column 2"),
    "a value missing": ("tsv", lambda text: text.replace("7.0\t", ""), "line 2: it holds 3 columns, .* first holds 4"),
    "empty": ("tsv", lambda text: "", "it is empty"),
    "series missing": ("tsv", lambda text: "2\n3\n", "line 1: it should hold a label and a series, separated by tabs"),
    "label missing": ("tsv", lambda text: "NaN" + text[1:], "line 1: its label is missing. Received: 'NaN'"),
    "label empty": ("tsv", lambda text: text[1:], "line 1: its label is missing. Received: ''"),
    "too large": ("tsv", lambda text: text.replace("7.0", "1e40"), "line 2: it holds an infinite number"),
    "UTF-16": ("tsv", lambda text: text.encode("utf-16"), "it should be UTF-8 text"),
    "UTF-16 without a mark": ("tsv", lambda text: text.encode("utf-16-le"), "it should be text. .* bytes of value 0"),
    "no data": ("ts", lambda text: text[: text.index("@data")], "no line follows @data"),
    "no label": ("ts", lambda text: text.rsplit(":", 1)[0], "line 6: it should end in a colon and a label"),
    "label unknown": ("ts", lambda text: text.replace(":2\n", ":?\n"), "line 5: its label is missing"),
    "comma at the end": ("ts", lambda text: text.replace("6.0:", "6.0,:"), "line 5: .* '' .* column 5"),
    "two dimensions": ("ts", lambda text: text.replace("6.0:", "6.0:1.0:"), "line 5: .* '6.0:1.0' .* column 4"),
}


@pytest.mark.parametrize(("kind", "change", "cause"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_file_is_named_and_nothing_is_left_behind(tmp_path, kind, change, cause):
    write(tmp_path / "Coffee", kind)
    path = tmp_path / "Coffee" / f"Coffee_TEST.{kind}"
    changed = change(path.read_text())
    assert changed != path.read_text()
    path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    builder = coffee(tmp_path)
    with pytest.raises(ValueError, match=f"Coffee cannot be read from .*Coffee_TEST.{kind}: {cause}"):
        prepare(builder, tmp_path)
    assert_nothing_is_left(builder)


def test_a_configuration_for_each_of_the_128_data_sets_named_in_snake_case():
    configs = ucr_dataset_builder.Builder.builder_configs
    assert len(configs) == 128
    assert {config.archive_name: name for name, config in configs.items()} == keras_ssd.datasets.UCR_CONFIGS
    info = tfds.builder("ucr/gun_point").info
    assert info.supervised_keys == ("series", "label")
    assert info.config_description == "GunPoint of the UCR archive of 2018."
    assert "dau2019ucr" in info.citation and "UCRArchive_2018" in info.description
    names = "ECG200 ECGFiveDays CinCECGTorso SonyAIBORobotSurface1 UWaveGestureLibraryX DistalPhalanxTW PLAID".split()
    found = [keras_ssd.datasets.UCR_CONFIGS[name] for name in names]
    named = "ecg200 ecg_five_days cin_cecg_torso sony_aibo_robot_surface1 u_wave_gesture_library_x"
    assert found == [*named.split(), "distal_phalanx_tw", "plaid"]


ROOT = 1.5**0.5  # [1, 2, 3] has mean 2 and deviation (2 / 3) ** 0.5, so it becomes [-ROOT, 0, ROOT]


@pytest.mark.parametrize(
    ("series", "length", "expected"),
    [
        ([1, 2, 3], None, [-ROOT, 0, ROOT]),
        ([0, NAN, NAN, 3], None, [-1.5 / 1.25**0.5, -0.5 / 1.25**0.5, 0.5 / 1.25**0.5, 1.5 / 1.25**0.5]),
        ([1, 2, 3, NAN, NAN], None, [-ROOT, 0, ROOT, 0, 0]),
        ([NAN, 1, 2, 3], None, [0, -ROOT, 0, ROOT]),
        ([1, 2, 3], 5, [-ROOT, 0, ROOT, 0, 0]),
        ([1, 2, 3, 400], 3, [-ROOT, 0, ROOT]),
        ([1, NAN, 3, 5], 2, [-1, 1]),
        ([0.1, 0.1, 0.1], None, [0, 0, 0]),
    ],
    ids="plain gaps tail start padded cropped gap-at-the-crop constant".split(),
)
def test_prepare(series, length, expected):
    for rows in (np.array([series, series]), np.array([series, np.flip(series)])[..., None]):
        before = rows.copy()
        prepared = keras_ssd.datasets.prepare(rows, length)
        assert prepared.dtype == "float32" and prepared.shape == (2, len(expected), 1)
        np.testing.assert_allclose(prepared[0, :, 0], expected, atol=1e-6)
        np.testing.assert_array_equal(rows, before)


@pytest.mark.parametrize(
    ("series", "length", "message"),
    [
        ([[1.0, 2.0], [NAN, NAN]], None, r"only missing values in rows \[1\]"),
        ([[NAN, NAN, 5.0]], 2, r"in its first 2 steps. Received: only missing values in rows \[0\]"),
        ([1.0, 2.0], None, r"shape \(2,\)"),
        ([[[1.0, 2.0]]], None, r"shape \(1, 1, 2\)"),
        ([[1.0, 2.0]], 0, "`length` should be at least 1. Received: 0"),
    ],
    ids=["all missing", "cropped to nothing", "one series", "two channels", "length 0"],
)
def test_prepare_rejects_bad_series(series, length, message):
    with pytest.raises(ValueError, match=message):
        keras_ssd.datasets.prepare(series, length)
