"""What people look at: plots, tables of completions, statistics of seeds."""
