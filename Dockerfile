# The service in a container: no compiler, no pip cache, no root.
#   docker build --build-arg ACCELERATOR=cpu  -t i2moe-service:cpu  .     (the default)
#   docker build --build-arg ACCELERATOR=cuda -t i2moe-service:cuda .     (adds the CUDA 13 libraries; run with --gpus all)
#   docker run -p 3000:3000 -v $PWD/bundles/support2:/bundle:ro --read-only --tmpfs /tmp i2moe-service:cpu
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS build
ARG ACCELERATOR=cpu
RUN python3 -m venv /opt/venv
COPY requirements.txt /tmp/requirements.txt
RUN /opt/venv/bin/pip install --no-cache-dir -r /tmp/requirements.txt \
    && case "${ACCELERATOR}" in \
        cpu) ;; \
        cuda) /opt/venv/bin/pip install --no-cache-dir -c /tmp/requirements.txt "onnxruntime-gpu[cuda,cudnn]" ;; \
        *) echo "ACCELERATOR must be cpu or cuda, found ${ACCELERATOR}" >&2; exit 1 ;; \
    esac

FROM ${PYTHON_IMAGE}
RUN useradd --system --uid 10001 --no-create-home --home-dir /nonexistent i2moe
COPY --from=build /opt/venv /opt/venv
COPY service /opt/i2moe/service
WORKDIR /opt/i2moe
# BentoML keeps its metrics files and sockets under its home; /tmp is writable even with a read-only root.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    BENTOML_HOME=/tmp/bentoml \
    BENTOML_DO_NOT_TRACK=1 \
    I2MOE_BUNDLE=/bundle
USER 10001
EXPOSE 3000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:3000/readyz', timeout=2)"]
STOPSIGNAL SIGTERM
CMD ["bentoml", "serve", "service.api:I2MoEService", "--host", "0.0.0.0", "--port", "3000"]
