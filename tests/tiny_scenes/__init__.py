"""A TFDS data set made from class folders. It is a package because TFDS requires builders to be in one."""

import pathlib

import tensorflow_datasets as tfds


class TinyScenes(tfds.core.GeneratorBasedBuilder):
    """Builds a data set from the images of the fixture `scenes` in `tests/conftest.py`."""

    VERSION = tfds.core.Version("1.0.0")
    folder: pathlib.Path

    def _info(self):
        label = tfds.features.ClassLabel(names=["china", "flower"])
        image = tfds.features.Image(encoding_format="jpeg")
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict({"image": image, "label": label})
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for path in sorted(self.folder.glob("*/*.jpg")):
            yield str(path.relative_to(self.folder)), {"image": path, "label": path.parent.name}
