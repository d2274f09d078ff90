import dataclasses

import numpy as np
import pytest

from rar_jax.config import Config, DataConfig, ModelConfig
from rar_jax.data.class_names import class_label, class_names, class_text, find_classes, imagenet_classes
from rar_jax.data.records import Description, write_records
from rar_jax.errors import UserError


def test_the_names_of_imagenet():
    names = tuple(imagenet_classes().values())
    assert len(names) == len(set(names)) == 1000
    # Labels follow the sorted WordNet ids.
    assert list(imagenet_classes()) == sorted(imagenet_classes())
    known = {0: "tench", 88: "macaw", 207: "golden retriever", 360: "otter", 980: "volcano", 999: "toilet tissue"}
    assert {i: names[i] for i in known} == known
    assert not [name for name in names if "," in name]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (["golden retriever", "207", 207, np.int64(3)], [207, 207, 207, 3]),
        (["Golden_Retriever", "  OTTER "], [207, 360]),
        (["n02444819"], [360]),
        # A whole name wins over longer names that begin with it.
        (["maillot", "maillot (tank suit)"], [638, 639]),
        (["crane (bird)", "crane (machine)", "sunglasses", "sunglass"], [134, 517, 837, 836]),
        # A number is an index. Whether the model has such a class is checked elsewhere.
        (["-1", "1000"], [-1, 1000]),
    ],
)
def test_classes_by_name_and_by_index(wanted, found):
    assert find_classes(wanted, tuple(imagenet_classes().values())) == found


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "crane",
            r"class 'crane' can be 134 crane \(bird\), 517 crane \(machine\): give one of these names or indices",
        ),
        ("cardigan", r"264 cardigan \(dog\), 474 cardigan \(garment\)"),
        ("goldn retriever", "no class is named 'goldn retriever'; the nearest are 207 golden retriever, "),
        ("macaque rhesus", "no class is named 'macaque rhesus'; the nearest are .*macaque"),
        ("terrier", "no class is named 'terrier'; the nearest are .*terrier"),
        ("", "no class is named ''; give an index from 0 to 999"),
    ],
)
def test_names_that_match_no_class_or_several(name, message):
    with pytest.raises(UserError, match=message):
        find_classes([name], tuple(imagenet_classes().values()))


def test_a_name_that_is_a_number_is_the_name():
    """Folders of classes are sorted as text, so that their numbers are not the indices."""
    names = tuple(sorted(map(str, range(12))))
    assert find_classes(names, names) == list(range(12))
    assert find_classes(["10", " 2 ", 2, "12"], names) == [2, 4, 2, 12]
    for known in (names, ("-1", "0", "x"), imagenet_classes(), None):
        known = known if known is None else tuple(known)
        assert find_classes([class_text(i, known) for i in range(3)], known) == [0, 1, 2]


def test_without_names_only_indices():
    assert find_classes(["3"], None) == [3] and class_label(3, None) == "3"
    # One class need not be in a list.
    assert find_classes("12", None) == find_classes(12, None) == [12]
    with pytest.raises(UserError, match="the names of this model's classes are not known; give its index"):
        find_classes(["otter"], None)


def records(folder, names):
    described = Description(grid_side=2, codebook_size=2, class_names=names, tokenizer="none", source="a test")
    write_records(folder, [(np.zeros(4), 0)], described)
    return str(folder)


def test_names_come_from_the_records_the_digits_or_imagenet(small_config, tmp_path):
    def of(names=(), number=None, path=None):
        path = path or (records(tmp_path / "_".join(names), names) if names else "")
        model = ModelConfig(num_classes=number or len(names))
        return class_names(Config(model=model, data=DataConfig(path=path)))

    assert class_names(small_config()) == tuple("0123456789")
    assert of(["china", "flower"]) == ("china", "flower")
    # Some folders are named by WordNet ids.
    assert of(["n02099601", "n02444819", "my cat"]) == ("golden retriever", "otter", "my cat")
    assert of(["0", "1"]) is None and of(number=7) is None
    assert of(["a", "b"], number=3) is None
    imagenet = tuple(imagenet_classes().values())
    assert of(number=1000) == of(number=1000, path=str(tmp_path / "away")) == imagenet
    config = Config(model=ModelConfig(num_classes=10), data=DataConfig(name="synthetic"))
    assert class_names(config) is None and class_names(dataclasses.replace(config, model=ModelConfig())) == imagenet
    assert class_label(207, imagenet) == "207 golden retriever" and class_label(7, tuple("0123456789")) == "7"


def test_the_names_of_embedded_data():
    for name, number, last in (("digits", 10, "9"), ("glyphs", 10, "9"), ("glyphs", 36, "Z")):
        config = Config(data=DataConfig(name=name), model=ModelConfig(num_classes=number))
        assert class_names(config)[-1] == last and len(class_names(config)) == number
