# docker build -t gpt2-mt .                  CPU, the default
# docker build -t gpt2-mt:gpu --target gpu . CUDA 13 provider
# docker run -p 8000:8000 gpt2-mt
FROM python:3.12-slim AS build
WORKDIR /src
COPY docker/requirements-serve.txt docker/
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --requirement docker/requirements-serve.txt
COPY pyproject.toml README.md LICENSE ./
COPY gpt2_mt gpt2_mt
COPY app app
# The console command mounts the light cli modules of all three packages.
COPY training training
COPY export export
RUN /venv/bin/pip install --no-cache-dir --no-deps .

# The bundled model as a GPU needs it.
FROM build AS fp16
RUN /venv/bin/pip install --no-cache-dir "onnx==1.23.2" "safetensors==0.8.0" \
  && /venv/bin/gpt2-mt export app/models/default /bundle --precision fp16

FROM build AS build-gpu
RUN /venv/bin/pip uninstall --yes onnxruntime && /venv/bin/pip install --no-cache-dir "onnxruntime-gpu==1.31.1"

FROM python:3.12-slim AS base
RUN useradd --system --uid 10001 --no-create-home server
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 GPT2MT_HOST=0.0.0.0
EXPOSE 8000
USER 10001
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health/ready', timeout=2)"]
ENTRYPOINT ["gpt2-mt"]
CMD ["serve"]

FROM nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04 AS gpu
RUN apt-get update && apt-get install --yes --no-install-recommends python3.12 && rm -rf /var/lib/apt/lists/* \
  && ln -s /usr/bin/python3.12 /usr/local/bin/python && ln -s /usr/bin/python3.12 /usr/local/bin/python3
RUN useradd --system --uid 10001 --no-create-home server
COPY --from=build-gpu /venv /venv
COPY --from=fp16 /bundle /bundle
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 GPT2MT_HOST=0.0.0.0 \
  GPT2MT_DEVICE=cuda GPT2MT_BUNDLE=/bundle
EXPOSE 8000
USER 10001
ENTRYPOINT ["gpt2-mt"]
CMD ["serve"]

FROM base AS cpu
COPY --from=build /venv /venv
