"""The wire types of requests, and the rule for every field: served, accepted because harmless, or refused by name."""
