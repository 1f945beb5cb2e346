"""A discrete variational autoencoder on MNIST whose code is M subsets of K among N."""
