"""The verbs of the command `dsmooth`, one file each; `options` is what they can be asked."""
