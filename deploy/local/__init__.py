"""The stack without containers: one bootstrap, one supervisor, one state folder."""
