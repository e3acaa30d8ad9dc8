"""Denoising: what is learned (`objective`), how a sampler walks (`solvers`), and Stable Diffusion itself (`stable_diffusion`)."""
