"""The customer's side: sealing keys stay here, the release agent decides here, and everything reaches the server by HTTP."""
