# kt_ray for GPU nodes: torch's own CUDA libraries; the host gives the driver. Build it in the repository's root:
#   docker build -f cluster/images/gpu.Dockerfile -t kt_ray:0.1.0-gpu .
FROM python:3.11-slim-bookworm

# KubeRay's probes call wget, Triton a C compiler; any version of them does.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev wget && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/kt_ray
COPY constraints.txt setup.cfg pyproject.toml README.md LICENSE ./
COPY kt_ray kt_ray
COPY search_spaces search_spaces
COPY cluster cluster
RUN pip install --no-cache-dir --constraint constraints.txt '.[cluster]'

RUN useradd --create-home --uid 1000 ray && mkdir /shared && chown ray /shared
USER 1000
WORKDIR /home/ray
ENV RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 KT_RAY_WORKSPACE=/shared/kt_ray \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
CMD ["kt-ray", "--help"]
