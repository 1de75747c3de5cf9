"""Policies behind a websocket."""

from urllib.parse import urlsplit

# Addresses that only this machine reaches.
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def names_this_machine(host: str) -> bool:
  """Returns whether a request's Host header, such as 'localhost:8000', is an address that only this machine reaches."""
  try:
    return urlsplit(f"//{host}").hostname in LOOPBACK
  except ValueError:
    return False
