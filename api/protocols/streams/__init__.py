"""The rest of a stream whose client lost its connection. Only this server has it."""
