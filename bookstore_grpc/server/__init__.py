"""The process: settings, composition root, supervisor and workers, signals."""
