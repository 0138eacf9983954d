# syntax=docker/dockerfile:1
# The trainer. On a GPU node: --build-arg TORCH_BACKEND=cu130 --build-arg UNSLOTH=2026.10.7, and run
# with the NVIDIA runtime. Without UNSLOTH set TUNESMITH_UNSLOTH=never: transformers + PEFT train.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS packages
ARG TORCH_BACKEND=cpu
ARG UNSLOTH=
# The account that runs it cannot keep bytecode: each start and health check would compile again.
ENV UV_COMPILE_BYTECODE=1
WORKDIR /opt/tunesmith
COPY requirements/uv.txt requirements/trainer.txt requirements/torch.txt requirements/
RUN python -m venv .venv \
 && .venv/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements/uv.txt \
 && .venv/bin/uv pip install --no-cache --python .venv/bin/python --no-deps --require-hashes \
      -r requirements/trainer.txt \
 && .venv/bin/uv pip install --no-cache --python .venv/bin/python \
      --torch-backend "${TORCH_BACKEND}" -r requirements/torch.txt \
 && if [ -n "${UNSLOTH}" ]; then \
      .venv/bin/uv pip install --no-cache --python .venv/bin/python \
        --torch-backend "${TORCH_BACKEND}" -r requirements/torch.txt "unsloth==${UNSLOTH}"; \
    fi

FROM ${BASE}
RUN useradd --system --uid 10001 --home-dir /var/lib/tunesmith --create-home tunesmith
WORKDIR /opt/tunesmith
COPY --from=packages /opt/tunesmith/.venv .venv
COPY libs libs
COPY deploy/docker/entry.py deploy/docker/health.py docker/
COPY services/trainer services/trainer
RUN python -m compileall -q libs docker services
ENV PATH=/opt/tunesmith/.venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/tunesmith/services:/opt/tunesmith/libs \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    SERVICE=trainer
USER 10001
WORKDIR /var/lib/tunesmith
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=6 \
  CMD ["python", "-P", "/opt/tunesmith/docker/health.py"]
ENTRYPOINT ["python", "-P", "/opt/tunesmith/docker/entry.py"]
