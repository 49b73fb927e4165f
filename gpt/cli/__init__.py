"""Code that the commands share: arguments, composition, checks, exit codes."""
