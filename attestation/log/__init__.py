"""The audit log: a C2SP tlog-tiles transparency log that nobody has to trust.

``leaf`` what an entry is · ``note`` what is signed · ``tiles`` where bytes stand · ``store`` and ``writer`` how they get there
· ``reader``, ``proof`` and ``verify`` how anybody checks them · ``witness`` and ``watch`` who keeps the log honest.
"""
