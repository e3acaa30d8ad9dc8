"""Denoising: what is learned (`objective`), how samplers walk (`solvers`, `guidance`), and `stable_diffusion`."""
