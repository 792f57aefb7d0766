"""What ClickHouse holds, and how it is kept in shape.

In: settings, and the tables there are. Out: a connection with its errors in plain words (client), tables made and reset
(schema), rewritten into big blocks (compact), saved after a power loss (repair), and what they take (storage).
Promise: nothing here deletes a row before another place is known to hold it, `--reset` apart.
"""
