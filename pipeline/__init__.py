"""What the scripts share: the way of a message, feed -> messages -> journal -> table, and what watches over it."""

import os

# Else clickhouse-driver fills 25 MB with dates at its import, and nothing here reads or writes a date. Its spelling.
os.environ.setdefault("CLICKHOUSE_DRIVER_LASY_DATE_LUT", "on")
