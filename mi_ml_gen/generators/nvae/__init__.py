"""NVAE, a hierarchical variational autoencoder (Vahdat and Kautz, 2020), as a generator with one chunk per group."""
