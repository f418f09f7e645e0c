"""Train a network: optimiser groups, schedule, loop, resumable state, several processes."""
