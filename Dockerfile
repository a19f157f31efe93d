# The server in an image: docs/serving.md says how to build and run it.
ARG BASE=debian:bookworm-slim

FROM $BASE AS build
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv python3-dev g++ ca-certificates
RUN python3 -m venv /opt/cierzo
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# PyTorch first, so that a change of the sources does not fetch it again. TORCH is what PyTorch's "Get started" page
# shows after `pip install` for Pip and CPU; as it is, the CUDA build is taken, several gigabytes.
ARG TORCH=torch
COPY constraints.txt ./
RUN /opt/cierzo/bin/pip install -c constraints.txt $TORCH
COPY . .
RUN /opt/cierzo/bin/pip install -c constraints.txt '.[serve]'

FROM $BASE
RUN apt-get update && apt-get install -y --no-install-recommends python3 ca-certificates && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/cierzo /opt/cierzo
ENV PATH=/opt/cierzo/bin:$PATH CIERZO_HOME=/var/lib/cierzo
RUN useradd --system --create-home --home-dir /var/lib/cierzo cierzo
USER cierzo
VOLUME /var/lib/cierzo
EXPOSE 8000
HEALTHCHECK --start-period=120s CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=10)"]
ENTRYPOINT ["cierzo", "serve", "--host", "0.0.0.0"]
