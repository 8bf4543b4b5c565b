"""Pictures to measure networks with. Pillow, grain and TFDS are loaded only when they are used."""

from corrq_jax.data.batching import BATCH, batches, example_batches
from corrq_jax.data.fashion_mnist import (
    FASHION_CLASSES,
    FASHION_MNIST,
    FashionMnist,
    read_fashion_mnist,
)
from corrq_jax.data.folder import ImageFolder, read_folder
from corrq_jax.data.loading import Pictures, load
from corrq_jax.data.photos import PHOTOS, Photo, all_views, load_photos, views
from corrq_jax.data.preprocess import Preprocess, preprocessing
from corrq_jax.data.source import Record, Source
from corrq_jax.data.tfds import TfdsSource, tfds_source

__all__ = [
    "BATCH",
    "FASHION_CLASSES",
    "FASHION_MNIST",
    "PHOTOS",
    "FashionMnist",
    "ImageFolder",
    "Photo",
    "Pictures",
    "Preprocess",
    "Record",
    "Source",
    "TfdsSource",
    "all_views",
    "batches",
    "example_batches",
    "load",
    "load_photos",
    "preprocessing",
    "read_fashion_mnist",
    "read_folder",
    "tfds_source",
    "views",
]
