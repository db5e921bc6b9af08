"""A network of one's own: what leaving examples out would do, and what it really does.

`study_model` takes a module, its loss and its data, and gives scores, which are an `Estimate`; `leave_out_again` leaves
examples out for real, R times, which is a `Truth`; `Studied.agreement` compares them by the rows of the results table.
`network_of` gives the network for the calls of the notebooks; `open_case` a model with its data by name, or from a
Python file. `trust` tells what speaks for scores and against them before anything is left out, `beliefs` after.
"""

from fragile_lib.own.cases import open_case
from fragile_lib.own.network import network_of
from fragile_lib.own.studied import Studied, leave_out_again, study_model
from fragile_lib.own.trust import beliefs, trust

__all__ = ["Studied", "beliefs", "leave_out_again", "network_of", "open_case", "study_model", "trust"]
