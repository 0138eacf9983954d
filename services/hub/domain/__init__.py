"""The rules of the hub: what may be stored, under which names, and how much of it."""
