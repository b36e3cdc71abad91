"""The HTTP application: operations and routes, the OpenAPI document, access checks, and the server."""
