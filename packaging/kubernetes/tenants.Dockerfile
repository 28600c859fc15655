# The image of the tenants' operator and of the nodes' agents. BASE is any Debian with Python 3.11 or newer in its archive.
#   make wheel && cp build/wheel/orlop-*.whl packaging/kubernetes/
#   podman build -t orlop-tenants -f packaging/kubernetes/tenants.Dockerfile packaging/kubernetes
ARG BASE=debian:trixie-slim
FROM ${BASE}
# The agent enters namespaces with nsenter; nft is the node's, whose other users must be able to read what it writes.
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv util-linux \
    && rm -rf /var/lib/apt/lists/*
COPY orlop-*.whl /tmp/
RUN python3 -m venv /opt/orlop && /opt/orlop/bin/pip install --no-cache-dir "$(echo /tmp/orlop-*.whl)[tenants]" \
    && rm /tmp/orlop-*.whl && ln -s /opt/orlop/bin/orlop /usr/local/bin/orlop
USER 65534
CMD ["orlop", "tenants", "operator"]
