# The service in a container: no compiler, no pip, no root, nothing that reports to anybody.
#   make image                     (docker build --build-arg ACCELERATOR=cpu -t i2moe-service:cpu . and labels for version and commit)
#   make image ACCELERATOR=cuda    (adds the CUDA 13 libraries; run with --gpus all)
#   docker run -p 3000:3000 -v $PWD/bundles/support2:/bundle:ro --read-only --tmpfs /tmp i2moe-service:cpu
# `make try-image` runs it as a cluster would and looks at it from inside. podman and buildah need --format docker, or they
# leave the HEALTHCHECK out.
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS build
ARG ACCELERATOR=cpu
RUN case "${ACCELERATOR}" in \
        cpu|cuda) ;; \
        *) echo "ACCELERATOR must be cpu or cuda, found ${ACCELERATOR}" >&2; exit 1 ;; \
    esac
RUN python3 -m venv /opt/venv
COPY requirements.hashes.txt requirements.cuda.hashes.txt /tmp/
# Wheels alone: nothing is built here, so nothing needs a compiler or runs a package's own code.
# The CPU image leaves ONNX Runtime's CUDA part out: 284 MB that are only opened where CUDA is installed.
# pip and setuptools have done their work by the end; tests of packages are 20 MB. Of Arrow only what reads and writes files here
# stays, 101 of 164 MB: no S3, no Flight, no headers, and none of the copies of its own libraries that wheels have for compilers.
RUN if [ "${ACCELERATOR}" = cuda ]; then cuda="-r /tmp/requirements.cuda.hashes.txt"; fi \
    && /opt/venv/bin/pip install --no-cache-dir --only-binary :all: --require-hashes -r /tmp/requirements.hashes.txt ${cuda:-} \
    && if [ "${ACCELERATOR}" = cpu ]; then rm /opt/venv/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime_providers_cuda.so; fi \
    && /opt/venv/bin/pip uninstall --yes --quiet setuptools pip \
    && find /opt/venv -type d \( -name tests -o -name test \) -prune -exec rm -r {} + \
    && cd /opt/venv/lib/python3*/site-packages/pyarrow \
    && rm -rf include includes src *.pyx *.pxi *.pxd *flight* *_s3* _substrait* _pyarrow_cpp_tests* *parquet_encryption* \
        libarrow_python.so libarrow_python.so.*.*.*
# Readable for any user, whatever the umask of the checkout, and compiled, since the service cannot write here.
COPY service /opt/i2moe/service
RUN chmod -R a+rX /opt/i2moe && /opt/venv/bin/python -m compileall -q /opt/i2moe

FROM ${PYTHON_IMAGE}
# What a base image brings and the service never needs: pip, the copies of it that venv installs, programs that run as another
# user. And what python:3.11-slim lacks: the standard library compiled, or every start and every health check compiles it.
RUN useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin i2moe \
    && rm -rf /usr/local/bin/pip* /usr/local/lib/python3*/site-packages/* /usr/local/lib/python3*/ensurepip /usr/share/python-wheels \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} + \
    && python3 -m compileall -q "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/i2moe /opt/i2moe
WORKDIR /opt/i2moe
# BentoML keeps its metrics files and sockets under its home; /tmp is writable even with a read-only root.
# ONNX Runtime's own builds send usage events to Microsoft unless ORT_DISABLE_TELEMETRY is set before they are loaded.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    BENTOML_HOME=/tmp/bentoml \
    BENTOML_HOST=0.0.0.0 \
    BENTOML_PORT=3000 \
    BENTOML_DO_NOT_TRACK=1 \
    ORT_DISABLE_TELEMETRY=1 \
    I2MOE_BUNDLE=/bundle
USER 10001
EXPOSE 3000
# Not urllib: it would send this through the proxy that HTTP_PROXY names. What /readyz says shows in `docker inspect`.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['BENTOML_PORT']), timeout=2); c.request('GET', '/readyz'); r = c.getresponse(); print(r.read().decode()); raise SystemExit(r.status != 200)"]
STOPSIGNAL SIGTERM
CMD ["bentoml", "serve", "service.api:I2MoEService"]
ARG ACCELERATOR=cpu
LABEL org.opencontainers.image.title="i2moe-service" \
      org.opencontainers.image.description="Multimodal risk predictions with per-expert explanations; mount a bundle at /bundle" \
      org.opencontainers.image.licenses="MIT" \
      org.i2moe.accelerator="${ACCELERATOR}"
