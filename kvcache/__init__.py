"""Pages, the prefix tree and the accounting of KV memory. Knows no HTTP, no policy and no model."""
