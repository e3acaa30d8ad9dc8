"""Denoising: what is learned (`gaussian`), how samplers walk (`sampler`), and `stable_diffusion`."""
