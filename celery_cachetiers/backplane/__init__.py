"""How processes tell each other of invalidations and of leaders that have come to an end."""
