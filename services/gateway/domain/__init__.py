"""What the gateway lets through, and where it goes."""
