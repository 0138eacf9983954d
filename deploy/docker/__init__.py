"""The stack in containers: images, their entry and health check, their certificates."""
