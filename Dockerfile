# The image of all collectors, and of ch_setup.py: Python with the packages that they import, OpenVPN, the kill switch.
#
# Behind a proxy or with a package index of your own: give Docker's predefined build arguments (HTTP_PROXY and so on)
# and PIP_INDEX_URL, or name a base image in PYTHON_IMAGE that has its pip, apt and certificates configured.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS packages
ARG PIP_INDEX_URL
COPY requirements-collector.lock /
RUN python3 -m pip install --no-cache-dir --no-compile --target /packages \
    --require-hashes --requirement /requirements-collector.lock

FROM ${PYTHON_IMAGE}
# Versions are not pinned: Debian's mirrors keep only the newest, which is the one with its security fixes.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates curl iproute2 nftables openvpn \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --no-create-home --shell /usr/sbin/nologin collector \
    && install --directory --owner=collector --group=collector /journal \
    && find / -xdev -type d -perm -o+w -exec chmod o-w {} +
WORKDIR /app
COPY --from=packages /packages /packages
COPY . .
ENV PYTHONPATH=/packages PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 JOURNAL_DIR=/journal

# Only /journal is the collector's to write to. The entrypoint is root's, for the kill switch and OpenVPN; it runs the command as the user `collector`.
ENTRYPOINT ["/app/docker/entrypoint.sh"]
CMD ["python3", "btcdat.py"]

# Unhealthy is a label: nothing restarts on it. At first there are the VPN server to be found and the tables to be made.
HEALTHCHECK --interval=15s --timeout=10s --start-period=2m --retries=3 CMD ["python3", "-m", "pipeline.collect.health"]
