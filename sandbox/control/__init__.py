"""The control plane: the operator's server. It sees signed documents and ciphertext, and never holds a key of a customer."""
