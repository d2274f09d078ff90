import pickle
import subprocess
import sys

import pytest

from rar_jax.data.sources import ClassFolders, ImageFolder, TfdsImages, check_outside
from rar_jax.errors import UserError


def test_classes_are_folders_sorted_by_name(scenes):
    source = ClassFolders(scenes)
    assert source.class_names == ("china", "flower") and len(source) == 96
    files = [source[i] for i in range(96)]
    assert [file.label for file in files] == [0] * 48 + [1] * 48
    names = [file.name for file in files]
    assert names == sorted(names)
    assert files[50].read() == ((scenes / "flower" / "000_120.jpg").read_bytes(), 1)


def test_a_class_list_gives_the_order(scenes):
    source = ClassFolders(scenes, ["flower", "china"])
    assert source.class_names == ("flower", "china")
    assert source[0].label == 0 and "flower" in source[0].name


def test_a_class_of_a_list_may_be_empty(tmp_path, caplog):
    for name in ("cat", "dog", "newt"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=r"no \.jpg, .* files in the class folders of"):
        ClassFolders(tmp_path, ["cat", "dog", "newt"])
    (tmp_path / "newt" / "a.png").write_bytes(b"x")
    source = ClassFolders(tmp_path, ["cat", "dog", "newt"])
    assert f"2 classes have no images in {tmp_path}: cat, dog" in caplog.text
    assert source.class_names == ("cat", "dog", "newt") and len(source) == 1 and source[0].label == 2


def test_output_must_lie_outside_the_images(tmp_path):
    check_outside(tmp_path / "images", "--output", tmp_path / "images2")
    check_outside(tmp_path / "images", "--output", tmp_path)
    check_outside(".", "--workdir", "gs://bucket/run")
    for inside in (tmp_path / "images", tmp_path / "x" / ".." / "images" / "tokens"):
        with pytest.raises(UserError, match=r"--output=.* lies in the images' folder .*: choose a folder outside it"):
            check_outside(tmp_path / "images", "--output", inside)


def test_suffixes_in_any_case_and_folders_below(tmp_path):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    for name in ("one.JPEG", "deep/two.PnG", "three.webp", "notes.txt"):
        (tmp_path / "a" / name).write_bytes(b"x")
    names = [ClassFolders(tmp_path)[i].name for i in range(len(ClassFolders(tmp_path)))]
    assert [name.rsplit("/", 1)[1] for name in names] == ["two.PnG", "one.JPEG", "three.webp"]
    assert [ImageFolder(tmp_path)[i].name for i in range(3)] == names


def test_unusable_folders_are_refused(scenes, tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        ClassFolders(tmp_path / "nothing")
    with pytest.raises(UserError, match="must have a folder of images for each class"):
        ClassFolders(tmp_path)
    with pytest.raises(UserError, match="class 1, 'newt', has no folder"):
        ClassFolders(scenes, ["china", "newt"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"class 0, .*empty, has no \.jpg"):
        ClassFolders(tmp_path)
    with pytest.raises(UserError, match=r"no \.jpg.* files in"):
        ImageFolder(tmp_path)


@pytest.fixture(scope="module")
def tfds_dir(scenes, tmp_path_factory):
    from tiny_scenes import TinyScenes

    TinyScenes.folder = scenes
    data_dir = tmp_path_factory.mktemp("tfds")
    TinyScenes(data_dir=data_dir, file_format="array_record").download_and_prepare()
    return str(data_dir)


def test_a_tfds_set(scenes, tfds_dir):
    source = TfdsImages("tiny_scenes", "train", tfds_dir)
    assert source.class_names == ("china", "flower") and len(source) == 96
    # The bytes are those of the files. The order is that of TFDS.
    found = sorted(pickle.loads(pickle.dumps(source[i])).read() for i in range(96))
    folders = ClassFolders(scenes)
    assert found == sorted(folders[i].read() for i in range(96))
    assert source[3].name == "tiny_scenes/train[3]"
    assert len(TfdsImages("tiny_scenes", "train[:10]", tfds_dir)) == 10


def test_a_tfds_set_is_read_without_tensorflow(tfds_dir):
    program = (
        "import sys\n"
        "from rar_jax.data.sources import TfdsImages\n"
        f"assert TfdsImages('tiny_scenes', 'train', {tfds_dir!r})[0].read()[0][:2] == b'\\xff\\xd8'\n"
        "assert 'tensorflow_datasets' in sys.modules and 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_missing_tfds_sets_are_refused(tfds_dir):
    with pytest.raises(UserError, match=r"TFDS set 'nothing', split 'train', in data_dir .* cannot be opened"):
        TfdsImages("nothing", "train", tfds_dir)
    with pytest.raises(UserError, match="Unknown split 'val'"):
        TfdsImages("tiny_scenes", "val", tfds_dir)
