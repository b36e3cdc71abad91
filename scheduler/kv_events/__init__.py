"""Publishes over ZMQ which pages the KV cache has, in vLLM's form. `zmq` and `msgspec` are imported only if used."""
