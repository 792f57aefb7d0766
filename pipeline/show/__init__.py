"""What people look at.

In: what `read` and `store` found out, and the collectors' status files. Out: a report as text or JSON (quality_report),
one HTML page (figures computes what it draws, page draws it, with assets/), and a live view of a terminal (watch).
Promise: what is shown was counted, not guessed; whatever the exchange sent is shown as text.
"""
