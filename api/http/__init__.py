"""The HTTP application: routes, their description, and the server around them."""
