"""A frame's way: from the exchange into the journal, and from there into the table.

In: frames of MEXC's WebSocket, and what its REST interface knows of deals that were missed. Out: rows in ClickHouse.
Promise: each row that was read is stored once, in the order it came, whatever dies meanwhile: docs/RELIABILITY.md.

    feed ----+
             +--> messages --> journal --> table         collector wires them; stats, health, metrics watch;
    gaps ----+                                           autocompact says when the table is rewritten

A module on the way imports none that is earlier on it.
"""
