"""The HTTP API: one router a topic. Routers translate; what happens is in the modules above."""
