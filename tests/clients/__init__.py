"""Well-known clients against a real server: `make clients`."""
