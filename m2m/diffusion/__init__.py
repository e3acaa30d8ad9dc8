"""Denoising: what is learned (`objective`), how samplers walk (`solvers`), Stable Diffusion (`stable_diffusion`)."""
