"""Gradients of discrete distributions small enough to be listed, measured against exact ones."""
