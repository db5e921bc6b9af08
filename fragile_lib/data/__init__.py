"""Where examples come from: sets in memory, and folders of photographs of any size, streamed."""
