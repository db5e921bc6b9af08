"""Every figure of the reports, and the tables that are made like them, by name.

    show(figure("iris_depth", results))

`figure` takes the results table (or the points of records), changes nothing, and returns a `Picture`: figure,
alternative text and caption, the two texts computed from the same numbers as the drawing; or a table with its caption.
Where the table has nothing for a figure there is nothing to show, and `show` passes it over. The figures are listed in
`specifications`: means along an axis (`lines`) or by category (`dots`), single points (`scatter`) and `tables`.
`pictures` shows test images beside the training images that help and harm them; `headlines` are the figures of the
report's first page.
"""

from fragile_lib.plots.base import Picture, png_bytes, show, theme
from fragile_lib.plots.held_out import foretold, held_out_curves
from fragile_lib.plots.photographs import influential_pictures, left_out_photographs, pictures
from fragile_lib.plots.specifications import SCATTERS, SPECS, figure, headlines
from fragile_lib.plots.tables import imagenet_cost_table, solver_table
from fragile_lib.plots.words import PHOTOGRAPHS
from fragile_lib.plots.words import code as dataset_word

__all__ = [
    "PHOTOGRAPHS",
    "SCATTERS",
    "SPECS",
    "Picture",
    "dataset_word",
    "figure",
    "foretold",
    "headlines",
    "held_out_curves",
    "imagenet_cost_table",
    "influential_pictures",
    "left_out_photographs",
    "pictures",
    "png_bytes",
    "show",
    "solver_table",
    "theme",
]
