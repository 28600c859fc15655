# The image of the tenants' operator.
#   make wheel && cp build/wheel/orlop-*.whl packaging/kubernetes/
#   podman build -t orlop-tenants -f packaging/kubernetes/tenants.Dockerfile packaging/kubernetes
FROM python:3.13-slim
COPY orlop-*.whl /tmp/
RUN pip install --no-cache-dir "$(echo /tmp/orlop-*.whl)[tenants]" && rm /tmp/orlop-*.whl
USER 65534
CMD ["orlop", "tenants", "operator"]
