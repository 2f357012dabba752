"""Data: sources of examples, and pipelines that make batch number n of them."""

from jaxdl.data.files import FileSource, decode_image, image_folder
from jaxdl.data.pipeline import Pipeline, Resident, Streaming, make_pipeline
from jaxdl.data.sources import ArraySource, ImageDataset, Source, digits, load_into_memory
from jaxdl.data.tfds import RecordSource, tfds_images

__all__ = [
    "ArraySource",
    "FileSource",
    "ImageDataset",
    "Pipeline",
    "RecordSource",
    "Resident",
    "Source",
    "Streaming",
    "decode_image",
    "digits",
    "image_folder",
    "load_into_memory",
    "make_pipeline",
    "tfds_images",
]
