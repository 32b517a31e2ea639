# kt_ray for nodes without a GPU: heads, CPU workers, the MLflow server. Build it in the repository's root:
#   docker build -f cluster/images/cpu.Dockerfile -t kt_ray:0.1.0-cpu .
FROM python:3.11-slim-bookworm

# An index with CPU builds of torch makes the image some 4 GB smaller: --build-arg TORCH_INDEX=…
ARG TORCH_INDEX=""

# KubeRay's probes call wget; any version of it does.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/kt_ray
COPY constraints.txt ./
# The variables hold versions.
# hadolint ignore=DL3013
RUN torch="$(grep -E '^torch==' constraints.txt)" torchvision="$(grep -E '^torchvision==' constraints.txt)" \
    && pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$torch" "$torchvision"
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY kt_ray kt_ray
COPY search_spaces search_spaces
COPY cluster cluster
RUN pip install --no-cache-dir --constraint constraints.txt '.[cluster]'

RUN useradd --create-home --uid 1000 ray && mkdir /shared && chown ray /shared
USER 1000
WORKDIR /home/ray
ENV RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 KT_RAY_WORKSPACE=/shared/kt_ray
# No program starts by itself: KubeRay, `ray up` or systemd gives the command.
CMD ["kt-ray", "--help"]
