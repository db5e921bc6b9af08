"""Where examples come from: sets in memory, and folders of photographs of any size, streamed."""

from fragile_lib.data.sets import Data, image_subset, iris_splits, is_available, small_mnist
from fragile_lib.tools.files import data_root

__all__ = ["Data", "data_root", "image_subset", "iris_splits", "is_available", "small_mnist"]
