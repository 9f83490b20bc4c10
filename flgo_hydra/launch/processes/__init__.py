"""How a job becomes a process, is heard, and ends: a server that forks them, pipes, payloads and results."""
