"""From a start and example weights to a network: descent, minibatches, second order to certified minima."""

from fragile_lib.minimise.schedule import TENTH_AFTER_TWO_THIRDS, Schedule

__all__ = ["TENTH_AFTER_TWO_THIRDS", "Schedule"]
