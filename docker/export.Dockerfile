# The image of the service `export`: Python with the packages that export.py imports, and nothing else.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE}
ARG PIP_INDEX_URL
COPY requirements.lock /
RUN python3 -m pip install --no-cache-dir --no-compile --target /packages --require-hashes --requirement /requirements.lock \
    && useradd --uid 1000 --no-create-home --shell /usr/sbin/nologin collector \
    && install --directory --owner=collector --group=collector /exports
WORKDIR /app
COPY . .
ENV PYTHONPATH=/packages PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 TMPDIR=/exports
USER 1000
ENTRYPOINT ["/app/docker/export.sh"]
