"""Health check of every image: grpc.health.v1 through the service's own certificate.

Exit code 0 when it serves.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

CHECK_SECONDS = 4.0
PRIVATE = Path("/run/tunesmith")


def main() -> int:
    """Ask the service in this container for its health."""
    port = os.environ["TUNESMITH_LISTEN"].rpartition(":")[2]
    credentials = grpc.ssl_channel_credentials(
        root_certificates=(PRIVATE / "ca.pem").read_bytes(),
        private_key=(PRIVATE / "key.pem").read_bytes(),
        certificate_chain=(PRIVATE / "cert.pem").read_bytes(),
    )
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=""), timeout=CHECK_SECONDS
            )
        except grpc.RpcError:
            return 1
    return 0 if reply.status == health_pb2.HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    sys.exit(main())
