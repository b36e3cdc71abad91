"""Tenants: who uses the server, with which key, share and limits, and how much each has used."""
