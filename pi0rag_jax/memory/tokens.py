"""How what episodes over the wire taught, and what people said of them afterwards, is named in a memory."""

_EPISODE, _LABEL = "episode ", "label "


def token_of(episode: str) -> str:
  """Returns the token of what an episode over the wire taught."""
  return f"{_EPISODE}{episode}"


def label_token(episode: str, number: int) -> str:
  """Returns the token of a label that a person gave to a moment of an episode."""
  return f"{_LABEL}{number} of {token_of(episode)}"


def is_label(token: str) -> bool:
  """Returns whether a token is a label's."""
  return token.startswith(_LABEL) and token.split(" ", 3)[2:3] == ["of"]


def tells_of(token: str, episode: str) -> bool:
  """Returns whether a token is an episode's, or that of one of its labels."""
  return (token.split(" ", 3)[3] if is_label(token) else token) == token_of(episode)
