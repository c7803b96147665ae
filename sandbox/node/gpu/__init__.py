"""GPUs of a node: what is there, how a job gets it, how it is wiped and what that proves."""
