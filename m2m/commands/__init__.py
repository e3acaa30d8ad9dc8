"""What looks at what the stages made, or uses it: a module a command, with one function `run`."""
