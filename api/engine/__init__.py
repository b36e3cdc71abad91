"""The API's end of the wire to an engine process."""
