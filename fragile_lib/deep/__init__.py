"""Networks too large for stacks: one at a time, in chunks of images."""
