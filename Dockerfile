# For a CPU, or for GPUs with `--build-arg DEVICE=cu130`. See docs/quickstart.md for what has been built.
ARG DEVICE=cpu
FROM ubuntu:24.04 AS cpu
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04 AS cu130
FROM ${DEVICE}
ARG DEVICE

# The compiler is needed at run time too: torch.compile and Triton call it.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/ecgfast
ENV PATH=/opt/ecgfast/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_CONSTRAINT=/src/constraints.txt

WORKDIR /src
COPY constraints.txt ./
RUN pip install --index-url "https://download.pytorch.org/whl/${DEVICE}" torch
COPY CMakeLists.txt LICENSE README.md pyproject.toml ./
COPY kernels kernels
COPY ecgfast ecgfast
RUN extras=cloud,excel,hdf5; \
    [ "$DEVICE" = cpu ] || extras="$extras,cuda"; \
    pip install ".[$extras]"

WORKDIR /
ENTRYPOINT ["ecgfast"]
