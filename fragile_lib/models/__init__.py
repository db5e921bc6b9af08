"""Networks as functions of one flat parameter vector, theta (P,), x -> outputs."""
