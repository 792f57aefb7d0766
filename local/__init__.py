"""The local stack: what stands in for Docker and for the exchange on one machine."""
