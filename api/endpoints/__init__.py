"""What a client can call: each module turns a request into sequences, and their tokens into its answers."""
