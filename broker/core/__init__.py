"""The state machine: pure, deterministic; no sockets, files, clocks or threads."""
