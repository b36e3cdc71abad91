"""Why tenants and their keys cannot be read or changed."""


class TenantsError(Exception):
    """The message is one line for the user."""
