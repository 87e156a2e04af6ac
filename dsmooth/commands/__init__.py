"""The verbs of the command `dsmooth`, one file each, and their `options`."""
