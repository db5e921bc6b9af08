"""Where examples come from: sets in memory, and folders of photographs of any size, streamed."""

from fragile_lib.data.folder import find_sets, list_folder
from fragile_lib.data.photographs import Loading, PhotoSet
from fragile_lib.data.sets import Data, image_strip, image_subset, iris_splits, is_available, small_mnist
from fragile_lib.data.standin import standin_folder
from fragile_lib.tools.files import data_root

__all__ = [
    "Data",
    "Loading",
    "PhotoSet",
    "data_root",
    "find_sets",
    "image_strip",
    "image_subset",
    "iris_splits",
    "is_available",
    "list_folder",
    "small_mnist",
    "standin_folder",
]
