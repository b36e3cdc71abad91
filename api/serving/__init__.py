"""The models of a server: loading and unloading them, and preparing requests to them."""
