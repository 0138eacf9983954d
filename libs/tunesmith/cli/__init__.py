"""The command line: `tunesmith --help`."""
