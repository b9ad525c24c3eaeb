# docker build -t gpt2-mt .                  CPU, the default
# docker build -t gpt2-mt:gpu --target gpu . CUDA 13 provider
# docker run --read-only --tmpfs /tmp --cap-drop ALL -p 8000:8000 gpt2-mt
# Every package comes by its hash (make lock). pip itself stays outside: the image installs nothing.
ARG BASE_IMAGE=python:3.12-slim
ARG CUDA_IMAGE=nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04

FROM ${BASE_IMAGE} AS wheel
WORKDIR /src
COPY docker/requirements-build.txt docker/
RUN pip install --no-cache-dir --require-hashes --requirement docker/requirements-build.txt
COPY pyproject.toml README.md LICENSE ./
COPY gpt2_mt gpt2_mt
COPY app app
# The console command mounts the light cli modules of all three packages.
COPY training training
COPY export export
RUN pip wheel --no-cache-dir --no-build-isolation --no-deps --wheel-dir /wheels .

FROM ${BASE_IMAGE} AS build
COPY docker/requirements-serve.txt /docker/
RUN python -m venv --without-pip /venv \
  && pip --python /venv/bin/python install --no-cache-dir --require-hashes --requirement /docker/requirements-serve.txt
COPY --from=wheel /wheels /wheels
RUN pip --python /venv/bin/python install --no-cache-dir --no-index --no-deps /wheels/*.whl \
  && find /venv -type d -name tests -prune -exec rm -r {} +

# The bundled model as a GPU needs it.
FROM build AS fp16
COPY docker/requirements-derive.txt /docker/
RUN pip --python /venv/bin/python install --no-cache-dir --require-hashes --requirement /docker/requirements-derive.txt \
  && /venv/bin/gpt2-mt export "$(/venv/bin/python -c 'from app.settings import DEFAULT_BUNDLE; print(DEFAULT_BUNDLE)')" \
    /bundle --precision fp16

FROM ${CUDA_IMAGE} AS cuda
RUN apt-get update && apt-get install --yes --no-install-recommends python3.12 && rm -rf /var/lib/apt/lists/* \
  && ln -s /usr/bin/python3.12 /usr/local/bin/python && ln -s /usr/bin/python3.12 /usr/local/bin/python3

# With the Python that runs it.
FROM cuda AS build-gpu
RUN apt-get update && apt-get install --yes --no-install-recommends python3-pip python3.12-venv
COPY docker/requirements-gpu.txt /docker/
RUN python -m venv --without-pip /venv \
  && pip --python /venv/bin/python install --no-cache-dir --require-hashes --requirement /docker/requirements-gpu.txt
COPY --from=wheel /wheels /wheels
RUN pip --python /venv/bin/python install --no-cache-dir --no-index --no-deps /wheels/*.whl

FROM cuda AS gpu
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="gpt2-mt" \
  org.opencontainers.image.description="Translation and text generation by a small GPT-2, on CUDA" \
  org.opencontainers.image.licenses="Apache-2.0 AND CC-BY-SA-4.0" \
  org.opencontainers.image.version="${VERSION}" \
  org.opencontainers.image.revision="${REVISION}"
COPY --from=build-gpu /venv /venv
COPY --from=fp16 /bundle /bundle
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 GPT2MT_HOST=0.0.0.0 \
  GPT2MT_DEVICE=cuda GPT2MT_BUNDLE=/bundle
EXPOSE 8000
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health/ready', timeout=2)"]
ENTRYPOINT ["gpt2-mt"]
CMD ["serve"]

FROM ${BASE_IMAGE} AS cpu
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="gpt2-mt" \
  org.opencontainers.image.description="Translation and text generation by a small GPT-2, on CPUs" \
  org.opencontainers.image.licenses="Apache-2.0 AND CC-BY-SA-4.0" \
  org.opencontainers.image.version="${VERSION}" \
  org.opencontainers.image.revision="${REVISION}"
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 GPT2MT_HOST=0.0.0.0
EXPOSE 8000
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health/ready', timeout=2)"]
ENTRYPOINT ["gpt2-mt"]
CMD ["serve"]
