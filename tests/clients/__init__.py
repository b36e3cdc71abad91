"""Well-known clients with a real server: `make clients`."""
