"""The models of a server, their lives, and requests to them."""
