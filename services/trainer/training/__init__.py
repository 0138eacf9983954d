"""The child process: the only room that sees torch. It holds no secret and opens no socket."""
