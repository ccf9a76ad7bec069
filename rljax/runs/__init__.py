"""The host side: train, evaluate, sweep, checkpoint, log, report, render. Written once against `Algorithm`."""
