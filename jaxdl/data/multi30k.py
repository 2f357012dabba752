"""Multi30k as a TFDS dataset: `prepared("multi30k")`, once this module has been imported.

Its files are unpacked here and not by TFDS, so that preparing it needs no TensorFlow.
"""

import gzip
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.checksums import UrlInfo
from tensorflow_datasets.core.utils import Size, classproperty

LANGUAGES = ("de", "en")
SPLITS = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
URL = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/"
FILES = {  # size in bytes and SHA-256
    "train.de.gz": (637044, "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6"),
    "train.en.gz": (568929, "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f"),
    "val.de.gz": (24681, "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a"),
    "val.en.gz": (21650, "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28"),
    "test_2016_flickr.de.gz": (
        22890, "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8"
    ),
    "test_2016_flickr.en.gz": (
        21077, "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9"
    ),
}  # fmt: skip


class Multi30k(tfds.core.GeneratorBasedBuilder):
    """Image captions in English and their translations into German, by professionals."""

    NEEDS_TENSORFLOW = False  # see `jaxdl.data.tfds.prepared`
    VERSION = tfds.core.Version("1.0.0")

    @classproperty
    @classmethod
    def url_infos(cls) -> dict[str, UrlInfo]:
        """What TFDS checks every file against, downloaded or from a manual folder."""
        return {
            URL + name: UrlInfo(size=Size(size), checksum=checksum, filename=name)
            for name, (size, checksum) in FILES.items()
        }

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.Translation(languages=LANGUAGES),
            homepage="https://github.com/multi30k/dataset",
            citation="Elliott et al. 2016, Multi30K: Multilingual English-German Image"
            " Descriptions, arXiv:1605.00459",
            disable_shuffling=True,  # captions stay in the order in which they are cited
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        names = {split: [f"{stem}.{language}.gz" for language in LANGUAGES]
                 for split, stem in SPLITS.items()}  # fmt: skip
        urls = {split: [URL + name for name in pair] for split, pair in names.items()}
        found = dl_manager.download(urls)
        return {split: self._generate_examples(*found[split]) for split in SPLITS}

    def _generate_examples(self, *paths: Any) -> Iterator[tuple[int, dict[str, str]]]:
        texts = [gzip.decompress(path.read_bytes()).decode() for path in paths]
        lines = [text.removesuffix("\n").split("\n") for text in texts]
        for number, pair in enumerate(zip(*lines, strict=True)):
            yield number, dict(zip(LANGUAGES, map(str.strip, pair), strict=True))
