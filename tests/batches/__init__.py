"""A check of batches that takes minutes: `make batch-test`."""
