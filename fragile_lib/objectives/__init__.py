"""J(theta; w) and its derivatives, one interface, by whatever is fastest for a network."""
