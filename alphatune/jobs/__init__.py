"""The whole jobs behind the commands: from names of things to results.

Each is one way down: open the model, open the data, run, write. The command
line parses into settings, calls one function here and renders what comes back;
a script can do the same.
"""
