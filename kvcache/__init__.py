"""Pages, the prefix tree and the accounting of KV memory. Independent of HTTP, of scheduling and of the model."""
