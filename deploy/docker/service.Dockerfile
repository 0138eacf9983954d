# syntax=docker/dockerfile:1
# One desk service (gateway, scheduler, validator, billing, hub): --build-arg SERVICE=billing.
# The image holds libs/ and that service's folder, and runs as an account without rights.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS packages
# The account that runs it cannot keep bytecode: each start and health check would compile again.
ENV UV_COMPILE_BYTECODE=1
WORKDIR /opt/tunesmith
COPY requirements/uv.txt requirements/service.txt requirements/
RUN python -m venv .venv \
 && .venv/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements/uv.txt \
 && .venv/bin/uv pip install --no-cache --python .venv/bin/python --no-deps --require-hashes \
      -r requirements/service.txt

FROM ${BASE}
ARG SERVICE
RUN useradd --system --uid 10001 --home-dir /var/lib/tunesmith --create-home tunesmith
WORKDIR /opt/tunesmith
COPY --from=packages /opt/tunesmith/.venv .venv
COPY libs libs
COPY deploy/docker/entry.py deploy/docker/health.py deploy/docker/certificates.py docker/
COPY deploy/nats/nats-server.conf docker/
COPY services/${SERVICE} services/${SERVICE}
RUN python -m compileall -q libs docker services
ENV PATH=/opt/tunesmith/.venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/tunesmith/services:/opt/tunesmith/libs \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    SERVICE=${SERVICE}
USER 10001
WORKDIR /var/lib/tunesmith
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 \
  CMD ["python", "-P", "/opt/tunesmith/docker/health.py"]
ENTRYPOINT ["python", "-P", "/opt/tunesmith/docker/entry.py"]
