"""What is examined and what is left out, and what is said of it: the types that estimates and truths share.

They stand below both registries.
"""

from fragile_lib.choices.choosing import (
    choose,
    choose_points,
    choose_the_groups,
    choose_training,
    most_influential,
    random_subsets,
    share_of,
    subset_choices,
)
from fragile_lib.choices.measured import NAN, Estimate, Truth, mean_of
from fragile_lib.choices.removals import Chosen, Points, Removals, rows_of

__all__ = [
    "NAN",
    "Chosen",
    "Estimate",
    "Points",
    "Removals",
    "Truth",
    "choose",
    "choose_points",
    "choose_the_groups",
    "choose_training",
    "mean_of",
    "most_influential",
    "random_subsets",
    "rows_of",
    "share_of",
    "subset_choices",
]
