#!/bin/sh
# ClickHouse's native port, and what its health check asks for, from the embedded engine.
mkdir -p /tmp/www && touch /tmp/www/ping
python3 -m http.server --directory /tmp/www 8123 >/dev/null 2>&1 &
socat "TCP-LISTEN:9000,bind=$(hostname -i),fork,reuseaddr" TCP:127.0.0.1:9000 2>/dev/null &
exec python3 -m tests.docker.clickhouse --port 9000 --data /var/lib/clickhouse
