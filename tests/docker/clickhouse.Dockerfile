# Stands in for the image of ClickHouse: the embedded engine, which listens on 127.0.0.1 only, made reachable.
ARG PYTHON_IMAGE
FROM ${PYTHON_IMAGE}
COPY requirements*.txt /
RUN python3 -m pip install --no-cache-dir --target /packages -r /requirements-collector.txt -r /requirements-local.txt
WORKDIR /app
COPY . .
ENV PYTHONPATH=/packages PYTHONUNBUFFERED=1
CMD ["tests/docker/clickhouse.sh"]
