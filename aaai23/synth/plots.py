"""tmp."""


def draw(identity, record):
    return []
