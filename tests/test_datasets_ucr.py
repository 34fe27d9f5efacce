"""`ucr` from files in the archive's own layout and in aeon's; `prepare` against numbers computed by hand."""

import keras
import numpy as np
import pytest
import tensorflow_datasets as tfds

import keras_ssd.datasets
from keras_ssd.datasets.ucr import ucr_dataset_builder

NAN = float("nan")
# Label and series of each row; the test split is longer, and one class is in it only.
ROWS = {
    "TRAIN": [("10", [0.5, 1.5, -2.0]), ("-1", [NAN, 0.25, NAN]), ("2", [1.0, NAN, NAN])],
    "TEST": [("2", [3.0, 4.0, 5.0, 6.0]), ("3", [-0.125, NAN, 7.0, NAN])],
}
CLASSES = ["-1", "2", "3", "10"]


@pytest.fixture(autouse=True)
def no_progress_bar():
    tfds.disable_progress_bar()


def text_tsv(rows):
    return "".join(
        "\t".join([label, *("NaN" if np.isnan(one) else str(one) for one in row)]) + "\n" for label, row in rows
    )


def text_ts(rows):
    """As aeon writes it: a header, `?` for a missing value, and shorter series without a tail."""
    lines = ["#About the data: 1,2:3", "@problemName Coffee", "@classLabel true -1 2 3 10", "@data"]
    for label, row in rows:
        length = max(step for step, one in enumerate(row) if not np.isnan(one)) + 1
        lines.append(",".join("?" if np.isnan(one) else str(one) for one in row[:length]) + f":{label}")
    return "\n".join(lines) + "\n"


TEXT = {"tsv": text_tsv, "ts": text_ts}


def write(folder, kind="tsv", rows=ROWS):
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("TRAIN", "TEST"):
        (folder / f"Coffee_{split}.{kind}").write_text(TEXT[kind](rows[split]))


def make_builder(tmp_path):
    return tfds.builder("ucr/coffee", data_dir=tmp_path / "prepared", file_format="array_record")


def prepare(builder, folder):
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder))


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


@pytest.mark.parametrize("kind", ["tsv", "ts"])
@pytest.mark.parametrize(
    ("place", "given"),
    [
        ("UCRArchive_2018/Coffee", "."),
        ("UCRArchive_2018/Coffee", "UCRArchive_2018"),
        ("UCRArchive_2018/Coffee", "UCRArchive_2018/Coffee"),
        ("Coffee", "."),
    ],
    ids=["parent", "archive", "data set", "data set's parent"],
)
def test_finds_and_reads_the_data_in_a_given_folder(tmp_path, kind, place, given):
    write(tmp_path / place, kind)
    builder = make_builder(tmp_path)
    prepare(builder, tmp_path / given)
    assert_as_written(builder)
    assert_as_written(make_builder(tmp_path))  # the names of the classes are kept


def test_labels_written_as_floats_are_the_same_classes(tmp_path):
    rows = {split: [(f"{float(label):.7e}", row) for label, row in ROWS[split]] for split in ROWS}
    write(tmp_path / "Coffee", rows=rows)
    builder = make_builder(tmp_path)
    prepare(builder, tmp_path)
    assert_as_written(builder)


def digits_of(number):
    return "1" + "0" * 30 + number


@pytest.mark.parametrize("kind", ["tsv", "ts"])
@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["1000001", "1000002"], ["1000001", "1000002"]),
        (["20190102", "20190101"], ["20190101", "20190102"]),
        ([digits_of("2"), digits_of("1")], [digits_of("1"), digits_of("2")]),
        (["0.1234567", "0.1234568"], ["0.1234567", "0.1234568"]),
        (["1", "1.0", "1.0000000e+00", "+1"], ["1"]),
        (["0", "-0.0", ".0"], ["0"]),
        (["10", "1e1", "9", "-2.50"], ["-2.5", "9", "10"]),
        (["1e-3", "0.001", ".001"], ["0.001"]),
        (["007", "7"], ["007", "7"]),
        (["1_1", "11"], ["11", "1_1"]),
        (["b", "a"], ["a", "b"]),
        (["inf", "Infinity", "1"], ["1", "Infinity", "inf"]),
    ],
    ids="large dates long fractions one zero order small leading-zeros underscores letters words".split(),
)
def test_labels_are_equal_only_if_their_numbers_are_equal(tmp_path, kind, labels, names):
    rows = {split: [(label, [0.5, 1.0]) for label in labels] for split in ROWS}
    write(tmp_path / "Coffee", kind, rows)
    builder = make_builder(tmp_path)
    prepare(builder, tmp_path)
    assert builder.info.features["label"].names == names


def test_trailing_tab_is_not_a_value(tmp_path):
    write(tmp_path / "Coffee")
    for path in (tmp_path / "Coffee").iterdir():
        path.write_text(path.read_text().replace("\n", "\t\r\n"))
    builder = make_builder(tmp_path)
    prepare(builder, tmp_path)
    assert_as_written(builder)


@pytest.mark.parametrize("given", ["missing", "empty", "others", "test split missing"])
def test_missing_data_error_says_where_to_get_the_data(tmp_path, given):
    folder = tmp_path / "given"
    if given != "missing":
        folder.mkdir()
    if given == "others":
        (folder / "Beef").mkdir()
    if given == "test split missing":
        write(folder / "Coffee")
        (folder / "Coffee" / "Coffee_TEST.tsv").unlink()
    builder = make_builder(tmp_path)
    with pytest.raises(FileNotFoundError, match="password.*aeon.datasets.load_classification.*Received: ") as error:
        prepare(builder, folder)
    assert f"Coffee/Coffee_{'TEST' if 'test' in given else 'TRAIN'}.tsv" in str(error.value)
    assert not builder.data_path.exists()


DAMAGE = {
    "truncated": ("tsv", lambda text: text[:-10], "line 2: .* 'Na' .* column 2"),
    "empty tsv": ("tsv", lambda text: "", "it is empty"),
    "series missing": ("tsv", lambda text: "2\n3\n", "line 1: it should hold a label and a series"),
    "label missing": ("tsv", lambda text: "NaN" + text[1:], "line 1: its label is missing. Received: 'NaN'"),
    "label empty": ("tsv", lambda text: text[1:], "line 1: its label is missing. Received: ''"),
    "a word": ("tsv", lambda text: text.replace("-0.125", "three"), "line 2: .* 'three' .* column 1"),
    "a gap": ("tsv", lambda text: text.replace("4.0", ""), "line 1: .* '' .* column 2"),
    "a question mark": ("tsv", lambda text: text.replace("4.0", "?"), "line 1: .* '\\?' .* column 2"),
    "decimal commas": ("tsv", lambda text: text.replace(".", ","), "line 1: .* '3,0' .* column 1"),
    "a comment": ("tsv", lambda text: "# mine\n" + text, "line 1: it should hold a label and a series"),
    "infinite": ("tsv", lambda text: text.replace("7.0", "inf"), "line 2: it holds an infinite number"),
    "too large": ("tsv", lambda text: text.replace("7.0", "1e40"), "line 2: it holds an infinite number"),
    "commas": ("tsv", lambda text: text.replace("\t", ","), "line 1: .* separated by tabs"),
    "UTF-16": ("tsv", lambda text: text.encode("utf-16"), "it should be UTF-8 text"),
    "UTF-16 without a mark": (
        "tsv",
        lambda text: text.encode("utf-16-le"),
        "it should be text. Received: bytes of value 0",
    ),
    "no data": ("ts", lambda text: text[: text.index("@data")], "no line follows @data"),
    "no label": ("ts", lambda text: text.rsplit(":", 1)[0], "line 6: it should end in a colon and a label"),
    "label unknown": ("ts", lambda text: text.replace(":2\n", ":?\n"), "line 5: its label is missing"),
    "a word in a ts file": ("ts", lambda text: text.replace("3.0", "three"), "line 5: .* 'three' .* column 1"),
    "comma at the end": ("ts", lambda text: text.replace("6.0:", "6.0,:"), "line 5: .* '' .* column 5"),
    "two dimensions": ("ts", lambda text: text.replace("6.0:", "6.0:1.0:"), "line 5: .* '6.0:1.0' .* column 4"),
}


@pytest.mark.parametrize(("kind", "change", "cause"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_file_is_named_and_nothing_is_left_behind(tmp_path, kind, change, cause):
    write(tmp_path / "Coffee", kind)
    path = tmp_path / "Coffee" / f"Coffee_TEST.{kind}"
    whole = path.read_text()
    assert change(whole) != whole
    changed = change(whole)
    path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    builder = make_builder(tmp_path)
    with pytest.raises(ValueError, match=f"Coffee cannot be read from .*Coffee_TEST.{kind}: {cause}"):
        prepare(builder, tmp_path)
    assert not builder.data_path.exists() and not list(builder.data_path.parent.glob("*"))
    path.write_text(whole)
    prepare(builder, tmp_path)
    assert_as_written(builder)


def test_a_configuration_for_each_of_the_128_data_sets():
    configs = ucr_dataset_builder.Builder.builder_configs
    assert len(configs) == 128
    assert {config.archive_name: name for name, config in configs.items()} == keras_ssd.datasets.UCR_CONFIGS


@pytest.mark.parametrize(
    ("archive_name", "config"),
    [
        ("GunPoint", "gun_point"),
        ("ECG200", "ecg200"),
        ("ECGFiveDays", "ecg_five_days"),
        ("CinCECGTorso", "cin_cecg_torso"),
        ("SonyAIBORobotSurface1", "sony_aibo_robot_surface1"),
        ("UWaveGestureLibraryX", "u_wave_gesture_library_x"),
        ("DistalPhalanxTW", "distal_phalanx_tw"),
        ("NonInvasiveFetalECGThorax2", "non_invasive_fetal_ecg_thorax2"),
        ("PLAID", "plaid"),
    ],
)
def test_configurations_are_named_in_snake_case(archive_name, config):
    assert keras_ssd.datasets.UCR_CONFIGS[archive_name] == config
    info = tfds.builder(f"ucr/{config}").info
    assert info.config_description == f"{archive_name} of the UCR archive of 2018."
    assert "dau2019ucr" in info.citation and "UCRArchive_2018" in info.description


def test_tf_data(tmp_path):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("reads with TensorFlow")
    write(tmp_path / "Coffee")
    config = tfds.download.DownloadConfig(manual_dir=tmp_path)
    dataset = tfds.load(
        "ucr/coffee",
        split="train",
        data_dir=tmp_path / "prepared",
        as_supervised=True,
        download_and_prepare_kwargs={"download_config": config},
    )
    series, labels = next(iter(dataset.batch(3)))
    assert series.shape == (3, 4, 1) and sorted(labels.numpy()) == [0, 1, 3]
    assert np.isnan(series).sum() == 1 + 3 + 3


ROOT = 1.5**0.5  # [1, 2, 3] has mean 2 and deviation (2 / 3) ** 0.5, so it becomes [-ROOT, 0, ROOT]


@pytest.mark.parametrize(
    ("series", "length", "expected"),
    [
        ([1, 2, 3], None, [-ROOT, 0, ROOT]),
        ([10, 10, 30, 30], None, [-1, -1, 1, 1]),
        ([1, NAN, 3], None, [-ROOT, 0, ROOT]),
        ([0, NAN, NAN, 3], None, [-1.5 / 1.25**0.5, -0.5 / 1.25**0.5, 0.5 / 1.25**0.5, 1.5 / 1.25**0.5]),
        ([1, 2, 3, NAN, NAN], None, [-ROOT, 0, ROOT, 0, 0]),
        ([NAN, 1, 2, 3], None, [0, -ROOT, 0, ROOT]),
        ([1, 2, 3], 5, [-ROOT, 0, ROOT, 0, 0]),
        ([1, 2, 3, 400], 3, [-ROOT, 0, ROOT]),
        ([1, NAN, 3, 5], 2, [-1, 1]),
        ([0.1, 0.1, 0.1], None, [0, 0, 0]),
    ],
    ids="plain scaled gap gaps tail start padded cropped gap-at-the-crop constant".split(),
)
@pytest.mark.parametrize("channels", [False, True], ids=["(rows, steps)", "(rows, steps, 1)"])
def test_prepare(series, length, expected, channels):
    rows = np.array([series, np.flip(series)])[..., None] if channels else [series, series]
    prepared = keras_ssd.datasets.prepare(rows, length)
    assert prepared.dtype == "float32" and prepared.shape == (2, len(expected), 1)
    np.testing.assert_allclose(prepared[0, :, 0], expected, atol=1e-6)


def test_prepare_leaves_its_argument_alone():
    series = np.array([[1.0, NAN, 3.0, 9.0]])
    keras_ssd.datasets.prepare(series, 3)
    np.testing.assert_array_equal(series, [[1.0, NAN, 3.0, 9.0]])


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
