"""The heavy half of the exporter: runs in a child process, knows neither network nor leases."""
