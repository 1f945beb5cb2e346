"""The experiments of the AAAI 2023 paper on adaptive perturbation-based gradient estimation."""
