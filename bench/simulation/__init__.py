"""The scheduler, the cache and virtual clients in virtual time, without a model."""
