"""The API's side of the engine: processes, connections and requests."""
