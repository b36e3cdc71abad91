"""What the server does right now, as a stream of events."""
