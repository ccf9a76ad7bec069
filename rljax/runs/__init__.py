"""The host side: train, evaluate, sweep, checkpoint, log, report, render; once, against `Algorithm`."""
