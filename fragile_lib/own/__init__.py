"""A network of one's own: what leaving examples out would do, and what it really does.

`study_model` takes a module, its loss and its data, and gives scores; `leave_out_again` leaves examples out for real, R
times, and tells how well scores agree with that and how reliable it is itself.
"""

from fragile_lib.own.again import Again, leave_out_again
from fragile_lib.own.studied import Studied, study_model

__all__ = ["Again", "Studied", "leave_out_again", "study_model"]
