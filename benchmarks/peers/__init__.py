"""What people use instead, each as its own documentation shows it, as a command: `python FILE CORPUS URL SINK`.

They run in an environment of their own (`make bench-peers`), so they import nothing of ragingest, and print how many
documents they have stored.
"""
