"""What algorithms share of a cycle: rollouts, replay, completions, minibatches, losses on tokens."""
