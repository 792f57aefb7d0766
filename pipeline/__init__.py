"""What the scripts share, in four wings on one ground. Arrows are imports, and go down only; a test holds that.

         show        what people look at: reports, the page, the live view
          |
         read        rows out again, as typed data: arrays, files, quality
          |
          |     collect        a frame's way in: feed -> messages -> journal -> table
          |        |
         store ----+           what ClickHouse holds, and how it is kept in shape
          |        |
    ======+========+======     the ground: messages, rest, contracts, status, and small tools, interrupts

`collect` runs for years in a small process and imports nothing that is large; `read` and `show` run when somebody
asks. The two know nothing of each other: they meet in ClickHouse.
"""

import os

# Else clickhouse-driver fills 25 MB with dates at its import, and nothing here reads or writes a date. Its spelling.
os.environ.setdefault("CLICKHOUSE_DRIVER_LASY_DATE_LUT", "on")
