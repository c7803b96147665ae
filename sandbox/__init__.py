"""Everything that touches the world: three trust domains (customer, control plane, node), what they share, and the commands."""
