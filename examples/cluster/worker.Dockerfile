# SPDX-License-Identifier: Apache-2.0
# reco with Dask and Milvus: docker build -t reco-worker -f examples/cluster/worker.Dockerfile .
FROM debian:12-slim
RUN apt-get update && apt-get install -y --no-install-recommends \
      g++ cmake ninja-build pkg-config python3-dev python3-venv libfaiss-dev libopenblas-dev libeigen3-dev libjpeg-dev \
      libpng-dev zlib1g-dev libwebp-dev libsentencepiece-dev libicu-dev libsqlite3-dev nlohmann-json3-dev \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/reco
ENV PATH=/opt/reco/bin:$PATH OMP_WAIT_POLICY=passive
COPY . /src
RUN pip install --no-cache-dir '/src[dask,milvus]'
