"""Pictures to measure networks with. Pillow is loaded only when pictures are read."""

from corrq_jax.data.batching import batches, example_batches
from corrq_jax.data.folder import ImageFolder, read_folder
from corrq_jax.data.photos import Photo, all_views, load_photos, views
from corrq_jax.data.preprocess import Preprocess, preprocessing

__all__ = [
    "ImageFolder",
    "Photo",
    "Preprocess",
    "all_views",
    "batches",
    "example_batches",
    "load_photos",
    "preprocessing",
    "read_folder",
    "views",
]
