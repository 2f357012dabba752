"""Data: sources of examples, and pipelines that make batch number n of them."""

from jaxdl.data.bpe import BPETokenizer
from jaxdl.data.captions import CaptionDataset, SceneDataset, caption_folder, digit_scenes
from jaxdl.data.codec import Tokenizer
from jaxdl.data.files import FileSource, decode_image, image_folder
from jaxdl.data.pair_pipeline import PackedPairs, encode_pairs, joint_bpe
from jaxdl.data.pairs import Pair, PairDataset, dates, multi30k, pair_files
from jaxdl.data.pipeline import Pipeline, Resident, Streaming, make_pipeline
from jaxdl.data.questions import PackedQuestions, question_file, questions
from jaxdl.data.scenes import Scenes
from jaxdl.data.sources import ArraySource, ImageDataset, Source, digits, load_into_memory
from jaxdl.data.text import TextDataset, stdlib_source, text_file, tfds_text
from jaxdl.data.text_baselines import bits_per_character, gzip_bits, markov_bits
from jaxdl.data.text_pipeline import Streams, Windows
from jaxdl.data.tfds import RecordSource, tfds_images
from jaxdl.data.tokenizers import (
    ByteTokenizer,
    CharTokenizer,
    WordTokenizer,
    load_tokenizer,
)

__all__ = [
    "ArraySource",
    "BPETokenizer",
    "ByteTokenizer",
    "CaptionDataset",
    "CharTokenizer",
    "FileSource",
    "ImageDataset",
    "PackedPairs",
    "PackedQuestions",
    "Pair",
    "PairDataset",
    "Pipeline",
    "RecordSource",
    "Resident",
    "SceneDataset",
    "Scenes",
    "Source",
    "Streaming",
    "Streams",
    "TextDataset",
    "Tokenizer",
    "Windows",
    "WordTokenizer",
    "bits_per_character",
    "caption_folder",
    "dates",
    "decode_image",
    "digit_scenes",
    "digits",
    "encode_pairs",
    "gzip_bits",
    "image_folder",
    "joint_bpe",
    "load_into_memory",
    "load_tokenizer",
    "make_pipeline",
    "markov_bits",
    "multi30k",
    "pair_files",
    "question_file",
    "questions",
    "stdlib_source",
    "text_file",
    "tfds_images",
    "tfds_text",
]
