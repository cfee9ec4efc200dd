"""One module a command: parse, resolve, call, report. Nothing here imports torch at module level."""
