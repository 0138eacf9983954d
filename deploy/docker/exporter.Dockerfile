# syntax=docker/dockerfile:1
# The exporter. llama.cpp is built here, with CMake, from the pinned and hashed source archive, by the
# recipe that the stack without containers uses; nothing is fetched or compiled when it runs.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE}
# The build tools come first and stay: a later GGUF build error would otherwise be a missing compiler.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential cmake ninja-build \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --home-dir /var/lib/tunesmith --create-home tunesmith
# The account that runs it cannot keep bytecode: each start and health check would compile again.
ENV UV_COMPILE_BYTECODE=1
WORKDIR /opt/tunesmith
COPY requirements/uv.txt requirements/exporter.txt requirements/torch.txt requirements/llama.txt \
     requirements/
RUN python -m venv .venv \
 && .venv/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements/uv.txt \
 && .venv/bin/uv pip install --no-cache --python .venv/bin/python --no-deps --require-hashes \
      -r requirements/exporter.txt \
 && .venv/bin/uv pip install --no-cache --python .venv/bin/python --torch-backend cpu \
      -r requirements/torch.txt
COPY deploy/__init__.py deploy/
COPY deploy/local deploy/local
# CMake with -DGGML_CUDA=OFF and `--target llama`: see CMAKE_OPTIONS in deploy/local/llama_build.py.
RUN XDG_CACHE_HOME=/opt/cache python -m deploy.local.llama_build --into /opt/tunesmith/llama \
 && .venv/bin/uv pip install --no-cache --python .venv/bin/python --no-deps \
      /opt/tunesmith/llama/*.whl \
 && rm -rf /opt/cache deploy
COPY libs libs
COPY deploy/docker/entry.py deploy/docker/health.py docker/
COPY services/exporter services/exporter
RUN python -m compileall -q libs docker services
ENV PATH=/opt/tunesmith/.venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/tunesmith/services:/opt/tunesmith/libs \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TUNESMITH_LLAMA_VENDOR=/opt/tunesmith/llama/vendor \
    SERVICE=exporter
USER 10001
WORKDIR /var/lib/tunesmith
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=6 \
  CMD ["python", "-P", "/opt/tunesmith/docker/health.py"]
ENTRYPOINT ["python", "-P", "/opt/tunesmith/docker/entry.py"]
