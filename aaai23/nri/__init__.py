"""Neural Relational Inference: infer the spanning tree that shapes a graph layout from its trajectory."""
