"""What text to image is made of beside its network: options, data, prompts, sheets and a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Int

from jaxdl.data import CaptionDataset, SceneDataset, Tokenizer, caption_folder, digit_scenes
from jaxdl.data.captions import encode_caption, pad_captions, rewritten
from jaxdl.data.scenes import COLUMNS, ROWS, Scenes
from jaxdl.data.tokenizers import UNKNOWN, WordTokenizer, load_tokenizer
from jaxdl.errors import UserError
from jaxdl.models import TextToImage
from jaxdl.run.cli import nearest
from jaxdl.run.generation import GenerationConfig, SamplingConfig, check_sampling
from jaxdl.run.generator import Generator, Sampling, load_generator
from jaxdl.run.images import ImageConfig, load
from jaxdl.run.judge import Judge, trained_judge
from jaxdl.run.pictures import check_picture, save_picture, sheet
from jaxdl.run.progress import say
from jaxdl.run.report import draw_images
from jaxdl.run.scene_report import accuracies, by_count
from jaxdl.run.workdir import Workdir
from jaxdl.train.sharding import Placement
from jaxdl.types import Key

SCALES = (0.0, 1.0, 2.0, 4.0, 8.0)  # of guidance, in its figure
SIDE = 96  # pixels of a picture in a sheet, about


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionConfig(GenerationConfig):
    """Options of every experiment on captioned pictures."""

    dataset: str = "digits"
    """What scenes are made of: digits (embedded), or a TFDS dataset of digits, e.g. mnist; or
    folder."""
    folder: Path | None = None
    """For the dataset "folder": PATH/metadata.jsonl, a line a picture: {"file_name": "1.png",
    "text": "a cat"}; or train/ and test/ in it, with one each."""
    channels: Literal[1, 3] = 3
    """Grey is repeated for 3; colours are mixed to grey for 1."""
    scenes: int = 128_000
    """Scenes in a pass over the training data, each drawn for itself."""
    vocabulary: int = 2000
    """For a folder: tokens of the byte-pair encoding of its captions."""
    length: int = 64
    """For a folder: most tokens of a caption; what is more is cut."""

    text_width: int = 64
    """Width of the transformer that reads."""
    text_layers: int = 2
    """Its layers."""
    text_dropout: float = 0.1
    """Share of captions that are withheld in training, which guidance builds on."""
    measured: int = 500
    """Scenes of a kind that are measured in the end: seen ones, and unseen ones."""
    judge_epochs: int = 20
    """Passes over real digits, to train the judge of the generated ones."""

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be meant."""
        super().__post_init__()
        for name in ("scenes", "text_width", "text_layers", "measured", "judge_epochs", "length"):
            self._require(getattr(self, name) > 0, name, "must be above 0")
        self._require(0 <= self.text_dropout < 1, "text_dropout", "must lie in [0, 1)")
        self._require_withheld(self.text_dropout)
        self._require(self.vocabulary > 257, "vocabulary", "must be above 257")
        what = f"must be a multiple of 2 x --heads, {2 * self.heads}"
        self._require(self.text_width % (2 * self.heads) == 0, "text_width", what)
        if self.dataset != "folder":
            (h, w), cells = self.size, f"{ROWS} x {COLUMNS} square cells of a scene"
            square = h % ROWS == 0 and h * COLUMNS == w * ROWS
            self._require(square, "image_width", f"and --image-size must be of {cells}")
            self._require(self.channels == 3, "channels", "must be 3: scenes have colours")


def load_captions(config: CaptionConfig) -> CaptionDataset:
    """Opens the config's captioned pictures."""
    if config.dataset != "folder":
        side = config.image_size // ROWS
        return digit_scenes(
            load(config), side=side, count=config.scenes, test=config.measured, seed=config.seed
        )
    if config.folder is None:
        raise UserError("--dataset folder needs --folder PATH, with metadata.jsonl in it")
    return caption_folder(
        config.folder, size=config.size, channels=config.channels, vocabulary=config.vocabulary,
        length=config.length,
    )  # fmt: skip


def read_prompts(
    tokenizer: Tokenizer, prompts: Sequence[str], length: int
) -> Int[np.ndarray, "b s"]:
    """Returns the tokens of prompts; an empty one is no text.

    Raises UserError naming a word that the network has never read, and the nearest that it has.
    """
    rows = [encode_caption(tokenizer, prompt) for prompt in prompts]
    if isinstance(tokenizer, WordTokenizer):
        known = [piece.strip() for piece in tokenizer.pieces]
        for prompt, row in zip(prompts, rows, strict=True):
            for word, token in zip(tokenizer.split(rewritten(prompt)), row, strict=True):
                if token == UNKNOWN:
                    raise UserError(
                        f"--prompt has an unknown word, {word.strip()!r}"
                        f"{nearest(word.strip(), known)}"
                    )
    return pad_captions(rows, length)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptConfig(SamplingConfig):
    """Options of `sample`."""

    prompt: tuple[str, ...]
    """What to draw, in quotes, or several; "" is anything."""
    count: int = 4
    """Pictures a prompt."""


def sample(options: PromptConfig) -> None:
    """Draws a sheet of pictures, a row a prompt."""
    generator, about = load_generator(options.workdir, TextToImage)
    how = options.how(generator)
    check_sampling(generator, options.count, how)
    if not options.prompt:
        raise UserError("--prompt needs what to draw, in quotes")
    tokenizer = load_tokenizer(Workdir(options.workdir).model)
    tokens = read_prompts(tokenizer, options.prompt, about["length"])
    given = np.repeat(tokens, options.count, axis=0)
    check_picture(options.path)
    images = generator.sample(given, jax.random.key(options.seed), how)
    save_picture(options.path, sheet(images, columns=options.count, side=SIDE))
    told = "; ".join(prompt or "(no text)" for prompt in options.prompt)
    say(f"{options.path}  {options.count} of each: {told}, {how}")


def draw_prompts(
    generator: Generator, data: CaptionDataset, path: Path, *, how: Sampling, key: Key,
    count: int = 24,
) -> None:  # fmt: skip
    """Draws a sheet of samples of the first captions to test on, each under its prompt."""
    rows = first_captions(data, count)
    path.parent.mkdir(parents=True, exist_ok=True)
    titles = [data.title({"tokens": row}) for row in rows]
    draw_images(generator.sample(rows, key, how), titles, path, columns=6)


def draw_guidance(
    generator: Generator, data: CaptionDataset, path: Path, *, how: Sampling, key: Key
) -> None:
    """Draws the same noise at several scales of guidance, a row each, a column a prompt."""
    rows = first_captions(data, 6)
    images = [generator.sample(rows, key, how._replace(guidance=scale)) for scale in SCALES]
    titles = [data.title({"tokens": row}) for row in rows]
    titles = [f"scale {scale:g}: {title}" for scale in SCALES for title in titles]
    draw_images(np.concatenate(images), titles, path, columns=len(rows))


def first_captions(data: CaptionDataset, count: int) -> Int[np.ndarray, "b s"]:
    """Returns the tokens of the first captions to test on."""
    return np.stack([data.test[i]["tokens"] for i in range(min(count, len(data.test)))])


def report_scenes(
    generator: Generator, data: SceneDataset, config: CaptionConfig, *, how: Sampling, key: Key,
    folder: Path, placement: Placement,
) -> dict[str, Any]:  # fmt: skip
    """Samples every caption to test on, and reports how often the judge agrees.

    Plain names are of unseen compositions, `seen_` of those that training has; `real_` is what
    pictures of the unseen ones get that are drawn with real digits, which is as much as samples
    could; `judge_accuracy` is the judge's on single digits, held out.
    """
    judge = scene_judge(config, data, folder, placement)
    numbers: dict[str, float] = {}
    sections: dict[str, Any] = {}
    for prefix, kind in (("", data.unseen), ("seen_", data.seen)):
        scenes = [kind.scene(i) for i in range(len(kind))]
        captions = [encode_caption(data.tokenizer, scene.caption) for scene in scenes]
        images = generator.sample(pad_captions(captions, data.train.length), key, how)
        found = accuracies(judge, scenes, images)
        numbers |= {prefix + name: value for name, value in found.items()}
        sections[f"{prefix or 'unseen_'}by_count"] = by_count(judge, scenes, images)
    unseen = [data.unseen.scene(i) for i in range(len(data.unseen))]
    real = np.stack([data.unseen.picture(i) for i in range(len(unseen))]).astype(np.float32) / 255
    found = accuracies(judge, unseen, real)
    numbers |= {f"real_{name}": value for name, value in found.items()}
    numbers["judge_accuracy"] = digit_accuracy(judge, data.unseen)
    return {"test": numbers, "sampling": how._asdict(), **sections}


def scene_judge(
    config: CaptionConfig, data: SceneDataset, folder: Path, placement: Placement
) -> Judge:
    """Reads or trains the judge of single digits, as large as a cell of a scene."""
    of_digits = ImageConfig(
        image_size=config.image_size // ROWS, channels=1, batch_size=config.batch_size,
        seed=config.seed, workers=config.workers,
    )  # fmt: skip
    return trained_judge(
        of_digits, data.digits, folder, epochs=config.judge_epochs, placement=placement
    )


def digit_accuracy(judge: Judge, scenes: Scenes) -> float:
    """Returns the judge's accuracy on the pictures of digits that scenes are drawn with."""
    images = scenes.images[..., None].astype(np.float32) / 255
    return float(np.mean(judge.look(images).classes == scenes.labels))
