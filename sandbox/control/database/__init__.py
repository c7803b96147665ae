"""The control plane's database: tables, sessions and migrations."""
