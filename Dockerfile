# splip in a container:  docker build --target cpu -t splip:cpu .     docker build --target cuda -t splip:cuda .
# What to do with it: docs/how-to/containers.md. Nothing here needs BuildKit.
#
# The image cpu encodes with OpenVINO, from an export of the package's model that is made while it is built. PyTorch, which reads
# checkpoints, is not in it.
ARG CPU_BASE=debian:bookworm-slim
ARG CUDA_BASE=nvidia/cuda:12.8.1-base-ubuntu24.04
ARG CUDA_BUILD=nvidia/cuda:12.8.1-devel-ubuntu24.04

# ---- The wheel, and the environment of the image cpu ----
FROM ${CPU_BASE} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN python3 -m venv /opt/tools && SPLIP_CUDA=off /opt/tools/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM build AS environment
RUN python3 tools/requirements.py --extras serve text --without torch open_clip_torch timm safetensors > /tmp/needs.txt \
    && python3 -m venv /opt/splip \
    && /opt/splip/bin/pip install --no-cache-dir -r /tmp/needs.txt "openvino>=2025.0" \
    && /opt/splip/bin/pip install --no-cache-dir --no-deps /wheels/splip-*.whl \
    && /opt/splip/bin/pip uninstall --yes openvino-telemetry pip setuptools

# ---- The package's model, exported: with open_clip, which stays here ----
FROM build AS model
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# A model by any name that needs no file of yours: open_clip:NAME/TAG, a short name of `splip models`, hf-hub:OWNER/NAME.
ARG MODEL=open_clip:splip-tiny-3
RUN python3 -m venv /opt/export \
    && /opt/export/bin/pip install --no-cache-dir --index-url "${TORCH_INDEX}" torch torchvision \
    && /opt/export/bin/pip install --no-cache-dir "$(echo /wheels/splip-*.whl)[openvino,text]"
RUN /opt/export/bin/splip export "${MODEL}" --openvino --text --fuse-preprocess --out /opt/model

# ---- cpu ----
FROM ${CPU_BASE} AS cpu
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libgomp1 python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --create-home --home-dir /home/splip splip \
    && install -d -o splip -g splip /data
COPY --from=environment /opt/splip /opt/splip
COPY --from=model /opt/model /opt/model
ENV PATH=/opt/splip/bin:$PATH \
    OMP_WAIT_POLICY=passive \
    SPLIP_GALLERY=/data/gallery \
    SPLIP_SERVE_HOST=0.0.0.0 \
    SPLIP_SERVE_PORT=8000
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
# Any answer but a failure: with another --allow-host or --protect all the service refuses this question, and is well.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python3", "-c", "\
import http.client, os, sys; \
asked = http.client.HTTPConnection('127.0.0.1', int(os.environ['SPLIP_SERVE_PORT']), timeout=4); \
asked.request('GET', '/readyz'); \
sys.exit(asked.getresponse().status >= 500)"]
ENTRYPOINT ["splip"]
CMD ["serve"]

# ---- cuda: the ops compiled for GPUs, checkpoints read by PyTorch ----
FROM ${CUDA_BUILD} AS cuda-build
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# Datacentre and desktop GPUs from Ampere to Blackwell; fewer build faster.
ARG CUDA_ARCHS="80;86;89;90a;100;120"
RUN python3 -m venv /opt/tools \
    && SPLIP_CUDA=on SPLIP_CUDA_ARCHS="${CUDA_ARCHS}" /opt/tools/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && python3 -m venv /opt/splip \
    && /opt/splip/bin/pip install --no-cache-dir "$(echo /wheels/splip-*.whl)[serve,text]"

FROM ${CUDA_BASE} AS cuda
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libgomp1 python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --create-home --home-dir /home/splip splip \
    && install -d -o splip -g splip /data
COPY --from=cuda-build /opt/splip /opt/splip
ENV PATH=/opt/splip/bin:$PATH \
    OMP_WAIT_POLICY=passive \
    SPLIP_GALLERY=/data/gallery \
    SPLIP_SERVE_HOST=0.0.0.0 \
    SPLIP_SERVE_PORT=8000
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["python3", "-c", "\
import http.client, os, sys; \
asked = http.client.HTTPConnection('127.0.0.1', int(os.environ['SPLIP_SERVE_PORT']), timeout=4); \
asked.request('GET', '/readyz'); \
sys.exit(asked.getresponse().status >= 500)"]
ENTRYPOINT ["splip"]
CMD ["serve"]
