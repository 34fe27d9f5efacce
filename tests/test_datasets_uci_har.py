"""`uci_har` from files in the publisher's own layout: complete, damaged, zipped and downloaded."""

import functools
import hashlib
import http.server
import importlib
import io
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import threading
import zipfile

import keras
import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds

from builders import assert_nothing_is_left, make_builder, prepare
from keras_ssd.datasets import sources
from keras_ssd.datasets.uci_har import uci_har_dataset_builder

SIGNALS = "body_acc_x body_acc_y body_acc_z body_gyro_x body_gyro_y body_gyro_z total_acc_x total_acc_y total_acc_z"
ACTIVITIES = ["WALKING", "WALKING_UPSTAIRS", "WALKING_DOWNSTAIRS", "SITTING", "STANDING", "LAYING"]
# Label (1 to 6) and subject of each window.
WINDOWS = {"train": [(5, 1), (6, 1), (1, 3)], "test": [(2, 2), (3, 4)]}
URL = uci_har_dataset_builder.URL
ZIP = "human+activity+recognition+using+smartphones.zip"


def value(split, row, step, channel):
    return (1 if split == "train" else -1) * (100 * row + step + channel / 16)


def write(folder):
    """Files as they are published: two spaces, seven decimals, exponents of three digits."""
    for split, windows in WINDOWS.items():
        signals = folder / "UCI HAR Dataset" / split / "Inertial Signals"
        signals.mkdir(parents=True)
        rows, steps = np.ogrid[: len(windows), :128]
        for channel, name in enumerate(SIGNALS.split()):
            table = io.StringIO()
            np.savetxt(table, value(split, rows, steps, channel), "%15.7e")
            (signals / f"{name}_{split}.txt").write_text(re.sub("e([+-])", r"e\g<1>0", table.getvalue()))
        for name, column in zip(("y", "subject"), np.transpose(windows), strict=True):
            np.savetxt(signals.parent / f"{name}_{split}.txt", column, "%d")
    return folder / "UCI HAR Dataset"


def zip_of(files):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


@functools.cache
def inner_zip():
    with tempfile.TemporaryDirectory() as folder:
        root = write(pathlib.Path(folder))
        paths = [path for path in root.rglob("*") if path.is_file()]
        return zip_of({path.relative_to(root.parent).as_posix(): path.read_bytes() for path in paths})


@functools.cache
def outer_zip():
    return zip_of({"UCI HAR Dataset.zip": inner_zip(), "UCI HAR Dataset.names": "about"})


def har(tmp_path):
    return make_builder("uci_har", tmp_path)


def rows_of(builder, split):
    """All rows of a split in the order of the files: TFDS shuffles them."""
    return sorted(builder.as_data_source(split), key=lambda row: abs(row["signals"][0, 0]))


def assert_as_written(builder):
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {"train": 3, "test": 2}
    for split, windows in WINDOWS.items():
        for number, (row, (label, subject)) in enumerate(zip(rows_of(builder, split), windows, strict=True)):
            assert (row["label"], row["subject"]) == (label - 1, subject)
            assert builder.info.features["label"].int2str(row["label"]) == ACTIVITIES[label - 1]
            assert row["signals"].shape == (128, 9) and row["signals"].dtype == "float32"
            for step, channel in [(0, 0), (127, 0), (0, 8), (64, 4)]:
                assert row["signals"][step, channel] == value(split, number, step, channel)


def test_metadata_is_packaged():
    info = tfds.builder("uci_har").info
    assert "CC BY 4.0" in info.description and "7352" in info.description
    assert "anguita2013public" in info.citation
    url_info = uci_har_dataset_builder.Builder.url_infos[URL]
    assert url_info.size == 61_005_872
    assert url_info.checksum == "c00b803081a5c797cd5e4b83700a9810b38d53d9d84e01917e090e1fdbc81031"


@pytest.mark.parametrize("is_nested", [False, True], ids=["of another name", "doubled, in lower case"])
def test_finds_the_data_in_a_given_folder(tmp_path, is_nested):
    given = tmp_path / "given"
    if is_nested:
        write(given / "UCI HAR Dataset")
        for path in sorted(given.rglob("*"), key=lambda path: -len(path.parts)):
            path.rename(path.with_name(path.name.lower()))
    else:
        write(tmp_path).rename(given)
    assert_as_written(prepare(har(tmp_path), given))


ZIPS = {
    ZIP: None,  # as published
    "har.zip": lambda name: name.removeprefix("UCI HAR Dataset/"),
    "UCI HAR Dataset.ZIP": lambda name: f"mine/{name.lower()}",
}


@pytest.mark.parametrize(("name", "rename"), ZIPS.items(), ids=ZIPS)
def test_finds_the_data_in_a_zip_beside_others(tmp_path, name, rename):
    content = outer_zip()
    if rename:
        with zipfile.ZipFile(io.BytesIO(inner_zip())) as archive:
            content = zip_of({rename(entry): archive.read(entry) for entry in archive.namelist()})
    (tmp_path / name).write_bytes(content)
    (tmp_path / "a other.zip").write_bytes(zip_of({"readme.txt": b"something else", "__MACOSX/._y_train.txt": b""}))
    (tmp_path / "b damaged.zip").write_bytes(b"something else")
    assert_as_written(prepare(har(tmp_path), tmp_path))


def test_error_of_a_zip_or_a_folder_with_other_content_lists_it(tmp_path, monkeypatch):
    monkeypatch.setattr(uci_har_dataset_builder.Builder, "url_infos", None)
    for name in ("README.txt", "windows.csv"):
        (tmp_path / name).touch()
    with pytest.raises(RuntimeError, match=r"Received: manual_dir=.*, which holds \['README.txt', 'windows.csv'\]"):
        prepare(har(tmp_path.with_name("other")), tmp_path)
    (tmp_path / ZIP).write_bytes(zip_of({"photos/cat.png": b""}))
    with pytest.raises(ValueError, match=r"should hold train/y_train.txt. Received: \['photos/cat.png'\]"):
        prepare(har(tmp_path), tmp_path)


def test_missing_subject_files_are_noticed_once(tmp_path):
    folder = write(tmp_path)
    for split in WINDOWS:
        (folder / split / f"subject_{split}.txt").unlink()
    builder = har(tmp_path)
    with pytest.warns(UserWarning, match="no subject file for train and test") as notices:
        prepare(builder, tmp_path)
    assert len(notices) == 1
    assert [row["subject"] for split in WINDOWS for row in builder.as_data_source(split)] == [-1] * 5


SIGNAL_X, SIGNAL_Z = "train/Inertial Signals/body_acc_x_train.txt", "test/Inertial Signals/total_acc_z_test.txt"
LABELS, SUBJECTS = "train/y_train.txt", "train/subject_train.txt"
DAMAGE = {  # beside that of any table of numbers, which the tests of `ucr` have
    "truncated": (SIGNAL_X, lambda text: text[: len(text) // 2], "line 2: it holds .* columns, .* first holds 128"),
    "row missing": (SIGNAL_Z, lambda text: text[: text.index("\n") + 1], r"2 lines of 128 .* Received: \(1, 128\)"),
    "NaN": (SIGNAL_X, lambda text: text.replace("0.0000000e+000", "nan"), "no missing values. Received: some in row 1"),
    "two labels": (LABELS, lambda text: "1 2\n3 4\n5 6\n", r"3 lines of 1 numbers. Received: \(3, 2\)"),
    "label 7": (LABELS, lambda text: text.replace("6", "7"), "labels between 1 and 6. Received: 7 as label 2"),
    "label 1.5": (LABELS, lambda text: text.replace("6", "1.5"), "line 2: .* '1.5' to int64"),
    "subject missing": (SUBJECTS, lambda text: "1\n3\n", r"3 lines of 1 numbers. Received: \(2, 1\)"),
    "file missing": (SIGNAL_Z, None, "it is missing"),
}


@pytest.mark.parametrize(("file", "change", "cause"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_file_is_named_and_nothing_is_left_behind(tmp_path, monkeypatch, file, change, cause):
    path = write(tmp_path) / file
    if change is None:
        path.unlink()
    else:
        whole = path.read_text()
        assert change(whole) != whole
        path.write_text(change(whole))
    builder = har(tmp_path)
    monkeypatch.setattr(sources, "download", None)  # it is not passed over for a download
    with pytest.raises(ValueError, match=f"UCI HAR cannot be read from .*{cause}") as error:
        prepare(builder, tmp_path)
    assert str(path) in str(error.value) and URL in str(error.value)
    assert_nothing_is_left(builder)


def damaged(content, count):
    """With `count` bytes in the middle inverted."""
    middle = len(content) // 2
    inverted = bytes(255 - byte for byte in content[middle : middle + count])
    return content[:middle] + inverted + content[middle + count :]


DAMAGED_ZIPS = {
    "truncated": lambda: outer_zip()[: len(outer_zip()) // 2],
    "a byte changed": lambda: damaged(outer_zip(), 1),
    "bytes of the zip inside changed": lambda: zip_of({"UCI HAR Dataset.zip": damaged(inner_zip(), 64)}),
}


@pytest.mark.parametrize("content", DAMAGED_ZIPS.values(), ids=DAMAGED_ZIPS)
def test_damaged_zip(tmp_path, content):
    (tmp_path / ZIP).write_bytes(content())
    builder = har(tmp_path)
    with pytest.raises(ValueError, match="UCI HAR cannot be read from .*complete zip file") as error:
        prepare(builder, tmp_path)
    assert str(tmp_path / ZIP) in str(error.value)
    assert not builder.data_path.exists()


def test_file_missing_in_the_zip(tmp_path):
    (tmp_path / ZIP).write_bytes(zip_of({"UCI HAR Dataset.zip": zip_of({"UCI HAR Dataset/train/y_train.txt": "1\n"})}))
    with pytest.raises(ValueError, match="body_acc_x_train.txt: it is missing") as error:
        prepare(har(tmp_path), tmp_path)
    assert f"{tmp_path / ZIP}/UCI HAR Dataset.zip/UCI HAR Dataset/train/Inertial Signals" in str(error.value)


@pytest.fixture
def server(monkeypatch, tmp_path_factory):
    """Serves the published zip from this machine, as long as it is not shut down."""
    folder = tmp_path_factory.mktemp("served")
    (folder / ZIP).write_bytes(outer_zip())
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(uci_har_dataset_builder, "URL", f"http://127.0.0.1:{server.server_port}/{ZIP}")
    yield server
    server.shutdown()
    server.server_close()


def know_checksum(monkeypatch, checksum):
    info = tfds.core.download.checksums.UrlInfo(size=len(outer_zip()), checksum=checksum, filename=ZIP)
    monkeypatch.setattr(uci_har_dataset_builder.Builder, "url_infos", {uci_har_dataset_builder.URL: info})


def assert_download_fails(builder, *words):
    with pytest.raises(RuntimeError, match="could not be downloaded. Fetch http.* manual_dir=") as error:
        prepare(builder, None)
    for word in words:
        assert word in str(error.value)
    assert not builder.data_path.exists()


def test_downloads_once_by_its_checksum_and_reads_the_zip_in_the_zip(tmp_path, monkeypatch, server):
    know_checksum(monkeypatch, "0" * 64)
    assert_download_fails(har(tmp_path), "NonMatchingChecksumError")
    know_checksum(monkeypatch, hashlib.sha256(outer_zip()).hexdigest())
    builder = prepare(har(tmp_path), None)
    assert_as_written(builder)
    server.shutdown()
    server.server_close()
    builder.data_path.rmtree()
    assert_as_written(prepare(har(tmp_path), None))


def test_offline_or_without_a_checksum_nothing_is_downloaded(tmp_path, monkeypatch):
    def no_network(*arguments, **options):
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests, "get", no_network)
    assert_download_fails(har(tmp_path), URL, "no network")
    monkeypatch.setattr(uci_har_dataset_builder.Builder, "url_infos", None)
    assert_download_fails(har(tmp_path), "no checksum")


def test_download_from_a_silent_server_times_out(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/{ZIP}"
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(uci_har_dataset_builder, "URL", url)
        monkeypatch.setattr(sources, "TIMEOUT", 0.05)
        know_checksum(monkeypatch, "0" * 64)
        assert_download_fails(har(tmp_path), "timed out")


def test_without_tfds_arrays_are_prepared_and_the_builders_say_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("keras_ssd.datasets")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    datasets = importlib.import_module("keras_ssd.datasets")
    assert datasets.prepare([[1.0, 3.0]])[0, :, 0].tolist() == [-1, 1]
    assert len(datasets.hold_out_subjects([1, 2])[0]) == 1
    with pytest.raises(ModuleNotFoundError, match=r'pip install "keras-ssd\[datasets\]"'):
        importlib.import_module("keras_ssd.datasets.uci_har.uci_har_dataset_builder")


@pytest.mark.slow
def test_no_tensorflow_in_the_pipeline_of_other_backends(tmp_path):
    write(tmp_path)
    program = f"""
import sys
import keras_ssd
assert "tensorflow_datasets" not in sys.modules, "import keras_ssd imports it"
import keras_ssd.datasets, tensorflow_datasets as tfds
config = tfds.download.DownloadConfig(manual_dir={str(tmp_path)!r})
source = tfds.data_source("uci_har", split="train", data_dir={str(tmp_path / "prepared")!r},
    builder_kwargs={{"file_format": "array_record"}}, download_and_prepare_kwargs={{"download_config": config}})
print(len(source), source[0]["signals"].shape, "tensorflow" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ)
    assert run.returncode == 0, run.stderr
    with_tensorflow = keras.backend.backend() == "tensorflow"
    assert run.stdout.splitlines()[-1] == f"3 (128, 9) {with_tensorflow}"
