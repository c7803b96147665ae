"""The console: server-rendered pages for operators, auditors and customers; strict CSP, no build step, works without script."""
