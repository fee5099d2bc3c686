"""The order in which a task's data reach the network: endless streams for training, single passes for judging."""
