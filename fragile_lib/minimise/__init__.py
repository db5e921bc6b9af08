"""From a start and example weights to a network: descent, minibatches, second order to certified minima."""
