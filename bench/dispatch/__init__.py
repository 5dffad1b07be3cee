"""From sending to the handler, turns per second and claims beside history, with the queues that people use instead."""
