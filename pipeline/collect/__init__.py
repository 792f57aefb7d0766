"""A frame's way: from the exchange into the journal, and from there into the tables.

In: frames of MEXC's WebSocket, and what its REST interface knows of deals that were missed. Out: rows in ClickHouse.
Promise: each row that was read is stored once, in the order it came, whatever dies meanwhile: docs/RELIABILITY.md.

    feed ----+                                  +--> table --> stripelog ---+
             +--> messages --> once --> journal +                           +--> inserts
    gaps ----+                                  +--> table --> historylog --+

    intake wires what comes from the exchange, collector all of it; stats, health and metrics watch; backoff, channels,
    lease, lines, salvage, autocompact and errors are their tools

A module on the way imports none that is earlier on it.
"""
