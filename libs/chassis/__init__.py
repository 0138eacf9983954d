"""How a service process lives: configuration, telemetry, gRPC, errors, Postgres, events, leases."""
