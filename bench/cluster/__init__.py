"""Several nodes behind a router on this machine: how policies route a workload, and what the loss of a node costs."""
