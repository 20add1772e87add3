"""The commands of `mindone-audio`, one file each: `add(commands)` declares it, `run(options)` gives its exit status.

A command imports what it needs when it runs: `--help` answers at once, and `doctor` works where MindSpore does not.
"""
