"""Faults at random moments under load, and after each the table is compared with what the exchange sent.

    python3 -m tests.chaos --rounds 300 [--seed N]

`audit` compares, `world` holds the processes, `faults` is what is done to them, `rounds` runs it all.
"""
