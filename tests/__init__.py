"""The tests, as a package: torch-fidelity installs one of this name."""
