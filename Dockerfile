# tuneloop on a processor: trains, measures, serves.
#   docker build -t tuneloop .
#   docker run --rm -v "$PWD:/data" tuneloop run mails.csv max_minutes=8
#   docker run --rm -p 127.0.0.1:8100:8100 -v "$PWD:/data" tuneloop serve runs/mails host=0.0.0.0
# Off loopback the server asks for a key: tuneloop keys add NAME.
FROM python:3.12-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/tuneloop
ENV PATH=/opt/tuneloop/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY pyproject.toml README.md LICENSE ./
COPY requirements ./requirements
# Exact versions with hashes. PyTorch comes from its own index: builds for processors, with no CUDA in them.
RUN python requirements/install.py --add image --add models --torch cpu
COPY src ./src
RUN pip install --no-deps --no-build-isolation .

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
