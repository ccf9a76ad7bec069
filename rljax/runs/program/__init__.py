"""Compiled programs over members, the loop that runs them, and the devices that they run on."""
