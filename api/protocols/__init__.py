"""The protocols that clients use, one package each, and the modules that they share."""
